#!/bin/sh
# test_real.sh STAGEDIFF [SIM] - checks on real models and real libraries that are too large for every commit: a trained LLaMA, random architectures in
# every folder layout, tokenizers, pictures. PYTHON names an interpreter that has tools/requirements.txt, HOST_PYTHON one that has requirements_host.txt;
# what is not named is made under build/real.
set -u
program=$1 sim=${2:-} here=$(cd "$(dirname "$0")" && pwd) work=build/real bad='' busy='' step=0
export TRANSFORMERS_VERBOSITY=error # it would say that there is no PyTorch, which the host's tests do without
. "$here/environment.sh"
PYTHON=${PYTHON:-$(environment venv requirements.txt)} || exit
HOST_PYTHON=${HOST_PYTHON:-$(environment host requirements_host.txt)} || exit
check() { # title, command
    title=$1 step=$((step + 1)) began=$(date +%s)
    shift
    echo "== $step of 4: $title"
    "$@"
    case $? in 0) ;; 3) busy="$busy; $title" ;; *) bad="$bad; $title" ;; esac # 3: all it could judge is right
    echo "   took $(($(date +%s) - began)) s"
}
check 'a trained model: SmolLM2-135M' "$PYTHON" "$here/test_real.py" "$program" $work
if [ -n "$sim" ]; then
    check 'random architectures, every layout; CUDA kernels through the SIMT layer' "$PYTHON" "$here/test_models.py" "$program" --sim "$sim"
else
    check 'random architectures, every layout' "$PYTHON" "$here/test_models.py" "$program"
fi
check 'tokenizers' "$HOST_PYTHON" "$here/test_tokenizers.py" "$program" --model $work/smollm2
check 'pictures' "$HOST_PYTHON" "$here/test_images.py" "$program"
echo "$work keeps the model and the Python environments for the next time; 'rm -r $work' frees the room"
if [ -n "$bad" ]; then echo "test-real: failed, see above: ${bad#; }"
elif [ -n "$busy" ]; then echo "test-real: passed, but times not judged on a busy machine: ${busy#; }"
else echo 'test-real: all passed'; fi
[ -z "$bad" ]
