#!/bin/bash
# run.sh BUILD SECONDS TARGET... - libFuzzer over each target in turn, SECONDS of CPU time each, at low priority, one process at a
# time. New inputs go to BUILD/fuzz/corpus/TARGET, failures to BUILD/fuzz/TARGET-*: fix, and keep the file (made smaller by
# BUILD/fuzz/fuzz_TARGET -minimize_crash=1 FILE) in tests/fuzz/corpus/TARGET/. Prints one line per target.
build=$1 seconds=$2
shift 2
cd "$(dirname "$0")/../.." || exit 2
export UBSAN_OPTIONS=print_stacktrace=1 TIMEFORMAT='%U %S'
TMPDIR=$(mktemp -d -p "$([ -w /dev/shm ] && echo /dev/shm || echo /tmp)") && export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT
bad=0
for t in "$@"; do
    log=$build/fuzz/$t.log malloc=128 spent=0 status=0
    [ "$t" = image ] && malloc=1024 # a picture of 89 million pixels is legal
    mkdir -p "$build/fuzz/corpus/$t"
    while [ "$status" = 0 ] && left=$((seconds - ${spent%.*})) && [ "$left" -gt 0 ]; do # a busy machine gives less CPU than time
        { time nice -n 19 "$build/fuzz/fuzz_$t" -max_total_time="$left" -max_len=65536 -timeout=100 -malloc_limit_mb=$malloc -rss_limit_mb=2048 \
            -artifact_prefix="$build/fuzz/$t-" -print_final_stats=1 "$build/fuzz/corpus/$t" "tests/fuzz/corpus/$t" >"$log" 2>&1; } 2>"$TMPDIR/time"
        status=$?
        read -r user system <"$TMPDIR/time"
        spent=$(awk "BEGIN { printf \"%.1f\", $spent + $user + $system }")
    done
    line="$t: $spent s of CPU, coverage $(sed -n 's/.*cov: \([0-9]*\).*/\1/p' "$log" | tail -1)"
    [ "$status" = 0 ] && echo "ok    $line" && continue
    echo "FAIL  $line (status $status): $log"
    bad=1
done
exit $bad
