#!/bin/bash
# run.sh PROGRAM... - runs test programs (cmocka, or scripts that end with `N passed, N failed`), two at a time, each under a time limit; shows the output of those that
# fail, a line for each, and last `N passed, N failed` over all cases. Logs stay beside the programs as PROGRAM.log.
limit=${TEST_SECONDS:-300}
jobs=${TEST_JOBS:-2}
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive} # waiting threads that spin starve each other on a busy machine
one() {
    local start=$SECONDS
    OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} timeout -k 5 "$1" "$2" >"$2.log" 2>&1 </dev/null
    local status=$?
    echo "$status $((SECONDS - start))" >"$2.status"
}
export -f one
printf '%s\n' "$@" | xargs -P "$jobs" -I{} bash -c "one $limit {}"
passed=0 failed=0
for t in "$@"; do
    read -r status seconds <"$t.status"
    p=$(sed -n 's/^\[  PASSED  \] \([0-9]*\) test.*/\1/p' "$t.log" | tail -1)
    f=$(sed -n 's/^\[  FAILED  \] \([0-9]*\) test.*/\1/p' "$t.log" | tail -1)
    if [ -z "$p$f" ]; then read -r p f < <(sed -n 's/^\([0-9]*\) passed, \([0-9]*\) failed.*/\1 \2/p' "$t.log" | tail -1); fi
    [ "$status" != 0 ] && [ "${f:-0}" = 0 ] && f=1
    [ "${p:-0}" = 0 ] && [ "${f:-0}" = 0 ] && f=1 # a program that ran no test has failed
    passed=$((passed + ${p:-0})) failed=$((failed + ${f:-0}))
    if [ "${f:-0}" != 0 ]; then
        echo "FAIL  $t (status $status, ${seconds} s)"
        tail -60 "$t.log"
    else
        printf 'ok    %-52s %4d tests %4d s\n' "$t" "$p" "$seconds"
    fi
done
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
