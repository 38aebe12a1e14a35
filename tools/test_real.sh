#!/bin/sh
# test_real.sh STAGEDIFF [SIM] - checks on real models and real libraries that are too large for every commit: a trained LLaMA, random architectures in
# every folder layout, tokenizers, pictures. PYTHON names an interpreter that has tools/requirements.txt, HOST_PYTHON one that has
# tools/requirements_host.txt (older libraries: slow processors and tokenizers); without them build/real/venv and build/real/host are made.
set -u
program=$1 sim=${2:-} here=$(cd "$(dirname "$0")" && pwd) work=build/real bad=0
mkdir -p $work
if [ -z "${PYTHON:-}" ]; then
    PYTHON=$work/venv/bin/python
    if [ ! -e $work/venv/ready ]; then
        python3 -m venv $work/venv && "$PYTHON" -m pip install -q -r "$here/requirements.txt" || exit 1
        touch $work/venv/ready
    fi
fi
if [ -z "${HOST_PYTHON:-}" ]; then
    HOST_PYTHON=$work/host/bin/python
    if [ ! -e $work/host/ready ]; then
        python3 -m venv $work/host && "$HOST_PYTHON" -m pip install -q -r "$here/requirements_host.txt" &&
            "$HOST_PYTHON" -m pip install -q --no-deps llama-models==0.3.0 || exit 1 # its tokenizer alone is wanted
        touch $work/host/ready
    fi
fi
check() { # title, script, arguments
    echo "== $1"
    shift
    if [ -e "$1" ]; then "$PYTHON" "$@" || bad=1; else echo "skipped: $1 is not here"; fi
}
check 'a trained model: SmolLM2-135M' "$here/test_real.py" "$program" $work
if [ -n "$sim" ]; then
    check 'random architectures, every layout; CUDA kernels through the SIMT layer' "$here/test_models.py" "$program" --sim "$sim"
else
    check 'random architectures, every layout' "$here/test_models.py" "$program"
fi
PYTHON=$HOST_PYTHON
check 'tokenizers' "$here/test_tokenizers.py" "$program" --model $work/smollm2
check 'pictures' "$here/test_images.py" "$program"
[ $bad = 0 ] && echo 'test-real: all passed' || echo 'test-real: something failed, see above'
exit $bad
