#!/bin/sh
# real.sh STAGEDIFF - the main job's training on a real model (real.py). PYTHON has tools/requirements.txt, SPARSIFY eai-sparsify, SAELENS sae-lens; what is
# not named is made under build/real. TOKENS=1000000 and STEPS=200 change the size.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/environment.sh"
PYTHON=${PYTHON:-$(environment venv -r "$here/requirements.txt")}
SPARSIFY=${SPARSIFY:-$(environment sparsify eai-sparsify==1.3.3)}
SAELENS=${SAELENS:-$(environment saelens sae-lens==6.54.12)}
exec "$PYTHON" "$here/real.py" "$1" build/real --tokens "${TOKENS:-1000000}" --steps "${STEPS:-200}" --sparsify "$SPARSIFY" --saelens "$SAELENS"
