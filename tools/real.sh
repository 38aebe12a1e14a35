#!/bin/sh
# real.sh STAGEDIFF - the main job's training on a real model (real.py). PYTHON names an interpreter that has tools/requirements_peers.txt; without it one is
# made under build/real. TOKENS=1000000 and STEPS=200 change the size, PROSE=FOLDER where the text is looked for.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/environment.sh"
PYTHON=${PYTHON:-$(environment venv requirements_peers.txt)}
exec "$PYTHON" "$here/real.py" "$1" build/real --tokens "${TOKENS:-1000000}" --steps "${STEPS:-200}" ${PROSE:+--prose "$PROSE"}
