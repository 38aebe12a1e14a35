#!/bin/sh
# test_real.sh STAGEDIFF [SIM] - checks on real models and real libraries that are too large for every commit: a trained LLaMA, random architectures in
# every folder layout, tokenizers, pictures. PYTHON names an interpreter that has tools/requirements.txt, HOST_PYTHON one that has requirements_host.txt;
# what is not named is made under build/real.
set -u
program=$1 sim=${2:-} here=$(cd "$(dirname "$0")" && pwd) work=build/real bad=0
. "$here/environment.sh"
PYTHON=${PYTHON:-$(environment venv -r "$here/requirements.txt")}
HOST_PYTHON=${HOST_PYTHON:-$(environment host -r "$here/requirements_host.txt")}
check() { # title, interpreter, script, arguments
    echo "== $1"
    shift
    if [ -e "$2" ]; then "$@" || bad=1; else echo "skipped: $2 is not here"; fi
}
check 'a trained model: SmolLM2-135M' "$PYTHON" "$here/test_real.py" "$program" $work
if [ -n "$sim" ]; then
    check 'random architectures, every layout; CUDA kernels through the SIMT layer' "$PYTHON" "$here/test_models.py" "$program" --sim "$sim"
else
    check 'random architectures, every layout' "$PYTHON" "$here/test_models.py" "$program"
fi
check 'tokenizers' "$HOST_PYTHON" "$here/test_tokenizers.py" "$program" --model $work/smollm2
check 'pictures' "$HOST_PYTHON" "$here/test_images.py" "$program"
[ $bad = 0 ] && echo 'test-real: all passed' || echo 'test-real: something failed, see above'
exit $bad
