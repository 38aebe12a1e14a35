#!/bin/bash
# test_corpus.sh - every file of tests/fuzz/corpus/TARGET/ through its target, under ASan and UBSan: seeds, and inputs that once failed.
# Memory is limited to what libFuzzer allows: an input that asks for more fails here too. Ends with `N passed, N failed`.
cd "$(dirname "$0")/../.." || exit 2
build=${B:-build}
passed=0 failed=0
TMPDIR=$(mktemp -d) && export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT
for target in tests/fuzz/fuzz_*.c; do
    t=$(basename "$target" .c)
    limit=128
    [ "$t" = fuzz_image ] && limit=1024
    export ASAN_OPTIONS=max_allocation_size_mb=$limit:allocator_may_return_null=0
    n=$(find "tests/fuzz/corpus/${t#fuzz_}" -type f | wc -l)
    if [ "$n" -gt 0 ] && timeout 120 "$build/replay/$t" "tests/fuzz/corpus/${t#fuzz_}"/* >"$TMPDIR/log" 2>&1; then
        passed=$((passed + n))
    else
        failed=$((failed + 1))
        echo "$t: $n files"
        tail -30 "$TMPDIR/log"
    fi
done
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
