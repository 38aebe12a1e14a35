#!/bin/bash
# run.sh OUT [MINUTES] - see README.md. Every part runs under its own limit, so that one hang loses one part.
usage="usage: run.sh OUT [MINUTES]"
out=${1:?$usage} minutes=${2:-9}
case $minutes in '' | *[!0-9]*) echo "$usage" >&2; exit 2 ;; esac
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$out" || exit 2
out=$(cd "$out" && pwd)
work=$(mktemp -d) || exit 2
trap 'rm -rf "$work"' EXIT
deadline=$((SECONDS + minutes * 60))
log=$out/log.txt summary=$out/summary.txt
: >"$log" >"$summary" >"$work/parts" >"$work/rows"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(nproc)}

say() { echo "$*" | tee -a "$summary"; }
quote() { printf '%s' "$1" | tr -d '\r\n' | sed 's/\\/\\\\/g; s/"/\\"/g; s/\t/ /g'; }

find_libraries() { # cuBLASLt: ldconfig knows it, or CUDA's folder, or Python's nvidia packages
    ldconfig -p 2>/dev/null | grep -q libcublasLt.so.13 && return
    local d
    for d in "${CUDA_HOME:-/usr/local/cuda}"/lib64 /usr/local/cuda*/lib64 \
        $(python3 -c 'import site,glob;[print(d) for s in site.getsitepackages() for d in glob.glob(s+"/nvidia/*/lib")]' 2>/dev/null); do
        [ -e "$d/libcublasLt.so.13" ] && export LD_LIBRARY_PATH="$d${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" && return
    done
    say "cuBLASLt 13 was not found (ldconfig, CUDA's folder, Python's nvidia packages): programs that need it will not start"
}

# part NAME SECONDS COMMAND...: output to the log and to $work/last; JSON lines become rows of results.json
part() {
    local name=$1 limit=$2 left=$((deadline - SECONDS)) start=$SECONDS status
    local why=""
    shift 2
    [ -n "$no_device" ] && why="no device"
    [ "$left" -le 5 ] && why="no time left"
    if [ -n "$why" ]; then
        say "$(printf '%-34s %s' "$name" "$why")"
        echo "{\"part\": \"$name\", \"status\": \"$why\", \"seconds\": 0}" >>"$work/parts"
        return 1
    fi
    [ "$limit" -gt "$left" ] && limit=$left
    { echo; echo "==== $name: $*"; } >>"$log"
    timeout -k 3 "$limit" "$@" >"$work/last" 2>&1 </dev/null
    status=$?
    cat "$work/last" >>"$log"
    grep '^{' "$work/last" | sed "s/^{/{\"part\": \"$name\", /" >>"$work/rows"
    local word="ok"
    [ $status != 0 ] && word="failed ($status): $(grep -v '^{' "$work/last" | grep -iE 'error|fail|bug|no .*device|not ' | tail -1 | cut -c1-100)"
    [ $status = 124 ] && word="stopped after $limit s"
    say "$(printf '%-34s %s, %d s' "$name" "$word" $((SECONDS - start)))"
    echo "{\"part\": \"$name\", \"status\": \"$(quote "$word")\", \"seconds\": $((SECONDS - start))}" >>"$work/parts"
    return $status
}

finish() {
    {
        echo "{\"commit\": \"$(cat "$here/COMMIT")\", \"gpu\": \"$(quote "$gpu")\", \"driver\": \"$(quote "$driver")\", \"clocks\": \"$(quote "$clocks")\","
        echo " \"host\": \"$(quote "$(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -1), $(nproc) cores")\", \"date\": \"$(date -u +%FT%TZ)\","
        echo " \"parts\": ["; paste -sd, "$work/parts"; echo " ],"
        echo " \"rows\": ["; paste -sd, "$work/rows"; echo " ]}"
    } >"$work/results.json" && mv "$work/results.json" "$out/results.json"
    echo "written: $out/results.json, summary.txt, log.txt"
}

find_libraries
gpu="none" driver="none" clocks="none"
if command -v nvidia-smi >/dev/null && timeout 20 nvidia-smi -L >/dev/null 2>&1; then
    gpu=$(nvidia-smi --query-gpu=name,memory.total --format=csv,noheader | head -1)
    driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -1)
    clocks=$(nvidia-smi --query-gpu=clocks.sm,clocks.mem,clocks.max.sm,power.limit,temperature.gpu --format=csv,noheader | head -1)
    nvidia-smi -q >>"$log" 2>&1
fi
say "stagediff $(cat "$here/COMMIT") on: $gpu, driver $driver, clocks (sm, mem, max sm, power limit, C): $clocks"
no_device=""
part "device" 30 "$here/bin/bench" rmsnorm --runs 3 --json || no_device=1

# 1. every op on the GPU against the same oracle as on the CPU
cd "$here" || exit 2 # op tests read tests/golden/
for t in tests/test_*; do part "op $(basename "$t" | sed s/test_//)" 60 "$t"; done

# 2. the small world: cuda against cpu
cd "$here/world" || exit 2
part "world harvest cpu" 60 "$here/bin/stagediff-cpu" harvest --quiet --model vlm --data data/few.jsonl --points 'blocks.*.hook_resid_post,logits' --out "$work/cpu.safetensors"
part "world harvest cuda" 60 "$here/bin/stagediff-cuda" harvest --quiet --model vlm --data data/few.jsonl --points 'blocks.*.hook_resid_post,logits' --out "$work/cuda.safetensors"
part "world cuda against cpu" 30 "$here/bin/compare" "$work/cpu.safetensors" "$work/cuda.safetensors" "$here/tests/golden/executors.json"
for e in cpu cuda; do
    part "world SAE step $e" 60 "$here/bin/stagediff-$e" train --quiet --rows "$work/cpu.safetensors" --tensor 0/blocks.4.hook_resid_post \
        --random 1024 --k 16 --steps 20 --batch 64 --lr 1e-3 --no-shuffle --out "$work/sae-$e" && tail -1 "$work/sae-$e/metrics.jsonl" | tee -a "$summary"
done
cd "$here" || exit 2

# 3. memory and race checks on small shapes
if command -v compute-sanitizer >/dev/null; then
    for t in norm attention "sae_encode test_paths" sae_train; do
        part "memcheck ${t%% *}" 60 compute-sanitizer --tool memcheck --error-exitcode 9 "tests/test_${t%% *}"
        part "racecheck $t" 60 compute-sanitizer --tool racecheck --error-exitcode 9 tests/test_$t # t: program and the test to choose
    done
else say "compute-sanitizer: not installed"; fi

# 4. ceilings and every kernel's share of its floor; 5. the SAE step beside PyTorch
part "ceilings and kernels" 120 bin/bench --json
part "SAE step" 90 bin/bench sae_step --d 4096 --m 32768 --k 50 --batch 8192 --dtype bf16 --json
if python3 -c 'import torch' 2>/dev/null; then
    part "SAE step, PyTorch" 120 python3 peers/sae_step.py none --device cuda --d 4096 --m 32768 --k 50 --batch 8192 --form dense --form dense_bf16 --form sparse_mixed --form sparse_bf16 --form sparse_loop
else say "PyTorch: does not import here, no peer figures"; fi

# 6. LLaMA-3.1-8B's widths: activations beside transformers, the main job's training on two layers
if python3 -c 'import torch, transformers, PIL, safetensors' 2>/dev/null; then
    part "real size" 180 python3 real_size.py bin/stagediff-cuda world "$work/real" --layers 8 --samples 208
    rm -rf "$work/real"
else say "PyTorch, transformers, PIL or safetensors: does not import here, no run at real size"; fi

# 7. where the time goes
if command -v ncu >/dev/null; then
    part "ncu" 90 ncu --clock-control none --set basic --launch-count 12 --kernel-name-base demangled bin/bench sae_step --d 4096 --m 32768 --k 50 --batch 8192 --dtype bf16 --runs 1 --json
else say "ncu: not installed"; fi

say ""
say "what                              median ms   best ms   share of floor"
while read -r row; do
    field() { sed -n "s/.*\"$1\": *\"\{0,1\}\([^,\"}]*\).*/\1/p" <<<"$row" | head -1; }
    [ -n "$(field median_ms)" ] && say "$(printf '%-32s %10s %9s   %s' "$(field op) $(field form)" "$(field median_ms)" "$(field best_ms)" "$(field share)")"
done <"$work/rows"
finish
[ -z "$no_device" ] || exit 2
