#!/bin/sh
# Remakes the small world from seeds: tokenizer, data files, base LLM, tower, VLM, all in the formats of the real checkpoints.
#   tools/tinyworld/make_world.sh [OUT_DIR] [WORK_DIR]        default: tools/tinyworld/world and build/tinyworld
# Each training keeps a checkpoint in WORK_DIR and goes on from it when run again. Training is timed (seconds below), so the weights
# depend on the machine's speed; the data files do not. Takes a bit over an hour and a half on two cores of their own. PYTHON names an interpreter to use as is.
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
export OMP_NUM_THREADS=1
cd "$here"
[ -e "$work/tok/special_tokens_map.json" ] || "$PYTHON" tokenizer.py "$work/tok"
[ -e "$out/data/text_test.jsonl" ] || "$PYTHON" data.py "$out/data"
pair() {      # pair NAME SCRIPT ARGUMENTS: two processes that share each step
    name=$1
    shift
    rm -f "$work/rendezvous"
    for rank in 0 1; do
        RANK=$rank WORLD_SIZE=2 RENDEZVOUS="file://$work/rendezvous" "$PYTHON" "$@" >> "$work/$name$rank.log" 2>&1 &
        eval "pid$rank=$!"
    done
    wait "$pid0" && wait "$pid1" || { echo "$name failed: see $work/${name}0.log" >&2; exit 1; }
}
"$PYTHON" tower.py "$work" "${TOWER_SECONDS:-1150}" >> "$work/tower.log" 2>&1
pair llm llm_train.py "$work/tok" "$work" "${LLM_SECONDS:-1800}"
pair vlm vlm_train.py "$work/tok" "$work" "${STAGE1_SECONDS:-110}" "${STAGE2_SECONDS:-2400}"
"$PYTHON" export.py "$work/tok" "$work" "$out"
"$PYTHON" check.py "$out" "$work/hf"
"$PYTHON" evaluate.py "$out" | tee "$work/accuracy.txt"
