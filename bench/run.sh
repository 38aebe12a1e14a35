#!/bin/bash
# bench/run.sh [BENCH]: every op against its floor, then the SAE step, the prefill and attribution beside PyTorch (A B B A), where a Python
# with PyTorch is found: $PYTHON, else python3. Timings are only as quiet as the machine; ratios are of one window.
set -euo pipefail
cd "$(dirname "$0")/.."
bench=${1:-build/cpu/bench}
python=${PYTHON:-python3}
threads=${THREADS:-$(nproc)}

echo "commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown), $(grep -m1 'model name' /proc/cpuinfo | cut -d: -f2- | sed 's/^ *//'), $threads threads, load $(cut -d' ' -f1 /proc/loadavg)"
"$bench" --threads "$threads"

if "$python" -c 'import torch' 2>/dev/null; then
    echo
    "$python" bench/peers/sae_step.py "$bench" --threads "$threads"
else
    echo "no PyTorch in $python: the SAE step is not compared (PYTHON=/path/to/python names another)"
fi
if "$python" -c 'import torch, transformers' 2>/dev/null; then
    echo
    "$python" bench/peers/prefill.py "$bench" "$threads"
    echo
    "$python" bench/peers/attribution.py "$bench" "$threads"
else
    echo "no transformers in $python: prefill and attribution are not compared"
fi
