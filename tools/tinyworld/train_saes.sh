#!/usr/bin/env bash
# Base SAEs of the small world, trained by stagediff itself and stored as Llama Scope v1 stores its own.
#   tools/tinyworld/train_saes.sh [WORLD] [STAGEDIFF]       a few minutes on two cores
# 1. train   one TopK dictionary a layer of WORLD/base, random start, on WORLD/data/text_train.jsonl; held-out FVU on text_test.jsonl
# 2. harvest residual rows of text_train.jsonl for the mean norm and the TopK -> JumpReLU threshold
# 3. convert to WORLD/saes/L{n}R-8x (tools/tinyworld/to_llama_scope.py; needs numpy)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
world=$(cd "${1:-$here/world}" && pwd)
stagediff=${2:-$here/../../build/cpu/stagediff}
python=${PYTHON:-python3}
work=${WORK:-}   # a folder to keep: a stopped training then goes on
if [ -z "$work" ]; then
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
fi
mkdir -p "$work"
k=${K:-16}
features=$((8 * $("$python" -c 'import json, sys; print(json.load(open(sys.argv[1]))["hidden_size"])' "$world/base/config.json")))

cat > "$work/train.json" <<JSON
{
  "out": "run", "model": "$world/base", "regimes": ["random"], "seed": 11,
  "data": {"train": "$world/data/text_train.jsonl", "validation": "$world/data/text_test.jsonl"},
  "train": {"k": $k, "features": $features, "batch": 1024, "lr": ${LR:-1e-3}, "passes": ${PASSES:-1}, "ring_rows": 65536, "forward_samples": 16}
}
JSON
"$stagediff" train "$work/train.json"

head -n 400 "$world/data/text_train.jsonl" > "$work/rows.jsonl"
"$stagediff" harvest --model "$world/base" --data "$work/rows.jsonl" --points 'blocks.*.hook_resid_post' --out "$work/rows.safetensors"
"$stagediff" harvest --model "$world/base" --data "$world/data/text_test.jsonl" --points 'blocks.*.hook_resid_post' --out "$work/test.safetensors"
"$python" "$here/to_llama_scope.py" --saes "$work/run/sae/random" --rows "$work/rows.safetensors" --test "$work/test.safetensors" --k "$k" --out "$world/saes"
