#!/bin/sh
# Remakes the small world from seeds: tokenizer, data files, base LLM, tower, VLM, all in the formats of the real checkpoints.
#   tools/tinyworld/make_world.sh [OUT_DIR] [WORK_DIR]        default: tools/tinyworld/world and build/tinyworld
# Each training keeps a checkpoint in WORK_DIR and goes on from it when run again; tools/tinyworld/README.md says how long it takes.
# With a GPU that PyTorch sees it trains there. Data files are the same to the bit everywhere, weights are not. PYTHON names an interpreter to use as is.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/world}
work=${2:-$here/../../build/tinyworld}
mkdir -p "$out" "$work"
if [ -z "${PYTHON:-}" ]; then
    PYTHON=$work/venv/bin/python
    if [ ! -e "$work/venv/ready" ]; then
        python3 -m venv "$work/venv"
        "$PYTHON" -m pip install -q -r "$here/../requirements.txt"
        touch "$work/venv/ready"
    fi
fi
cd "$here"
[ -e "$work/tok/special_tokens_map.json" ] || "$PYTHON" tokenizer.py "$work/tok"
[ -e "$out/data/text_test.jsonl" ] || "$PYTHON" data.py "$out/data"
training() {      # training NAME SCRIPT ARGUMENTS
    name=$1
    shift
    echo "$name: $work/$name.log"
    "$PYTHON" "$@" >> "$work/$name.log" 2>&1 || { echo "$name failed: see $work/$name.log" >&2; return 1; }
}
training tower tower.py "$work" &
tower=$!
training llm llm_train.py "$work/tok" "$work"
wait "$tower"
training vlm vlm_train.py "$work/tok" "$work"
"$PYTHON" export.py "$work/tok" "$work" "$out"
"$PYTHON" check.py "$out" "$work/hf"
"$PYTHON" evaluate.py "$out" | tee "$work/accuracy.txt"
