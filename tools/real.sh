#!/bin/sh
# real.sh STAGEDIFF - the main job's training on a real model (real.py). PYTHON has tools/requirements.txt, SPARSIFY eai-sparsify, SAELENS sae-lens; those that
# are not named are made under build/real. TOKENS=1000000 and STEPS=200 change the size.
set -eu
here=$(cd "$(dirname "$0")" && pwd) work=build/real
mkdir -p $work
environment() { # folder, pip arguments: an interpreter that has them
    folder=$work/$1
    shift
    if [ ! -e "$folder/ready" ]; then
        python3 -m venv "$folder" && "$folder/bin/python" -m pip install -q "$@" >&2 && touch "$folder/ready" || exit 1
    fi
    echo "$folder/bin/python"
}
PYTHON=${PYTHON:-$(environment venv -r "$here/requirements.txt")}
SPARSIFY=${SPARSIFY:-$(environment sparsify eai-sparsify==1.3.3)}
SAELENS=${SAELENS:-$(environment saelens sae-lens==6.54.12)}
exec "$PYTHON" "$here/real.py" "$1" $work --tokens "${TOKENS:-1000000}" --steps "${STEPS:-200}" --sparsify "$SPARSIFY" --saelens "$SAELENS"
