#!/usr/bin/env bash
# run.sh BUILD_DIR: the SIMT layer's own tests, with the programs that tests/simt/simt.mk built in BUILD_DIR/{plain,asan,check}.
#
# 1. unit in every mode, forward, reverse and five random orders, one and two workers.
# 2. Every program of bug_kernels: correct ones must pass everywhere, each planted bug must be caught where the table says so.
# 3. Sources that must not compile: they would mean something else on a GPU or escape the checks.
# The last line is "N passed, M failed"; exit status 0 when M is 0.
set -u
build=${1:?usage: run.sh BUILD_DIR}
cxx=${SIMT_CXX:-g++}
passed=0 failed=0
export ASAN_OPTIONS=detect_leaks=0 SIMT_WORKERS=1
ulimit -c 0

verdict() { # verdict NAME STATUS [TEXT]: counts one test
    if [ "$2" = 0 ]; then passed=$((passed + 1)); else failed=$((failed + 1)); printf 'FAIL %s: %s\n' "$1" "${3-}"; fi
}

# What the table's words accept: ok  num (wrong result)  err (any report)  any (either)  a regular expression of the report, - no claim
judge() { # judge NAME WANT STATUS OUTPUT
    local name=$1 want=$2 status=$3 out=$4 good=1
    case $want in
    ok) [ "$status" = 0 ] && good=0 ;;
    num) [ "$status" = 1 ] && [[ $out == *"wrong result"* ]] && good=0 ;;
    err) [[ $out =~ "SIMT ERROR"|"AddressSanitizer:"|"runtime error:" ]] && good=0 ;;
    any) [ "$status" != 0 ] && [ "$status" != 124 ] && good=0 ;;
    *) grep -qE "$want" <<<"$out" && good=0 ;;
    esac
    verdict "$name" $good "wanted '$want', got status $status: $(head -n 2 <<<"$out")"
}

unit() {
    local mode out order seed
    for mode in plain asan check; do
        for order in fwd rev 1 2 3 4 5; do
            case $order in fwd | rev) seed=0 ;; *) seed=$order order=rand ;; esac
            out=$(SIMT_ORDER=$order SIMT_SEED=$seed SIMT_WORKERS=$((1 + seed % 2)) timeout 60 "$build/$mode/unit" 2>&1)
            judge "unit $mode $order $seed" ok $? "$out"
        done
        tail -n 1 <<<"$out"
    done
}

bug() { # bug NAME PLAIN RAND ASAN CHECK
    local name=$1 out order seed exe
    for order in fwd rev; do
        [ "$2" = - ] && break
        out=$(SIMT_ORDER=$order timeout 20 "$build/plain/bug_kernels" "$name" 2>&1)
        judge "$name plain $order" "$2" $? "$out"
    done
    for seed in 1 2 3 4 5; do
        [ "$3" = - ] && break
        out=$(SIMT_ORDER=rand SIMT_SEED=$seed timeout 20 "$build/plain/bug_kernels" "$name" 2>&1)
        judge "$name plain rand $seed" "$3" $? "$out"
    done
    for exe in "asan $4" "check $5"; do
        [ "${exe#* }" = - ] && continue
        out=$(timeout 20 "$build/${exe%% *}/bug_kernels" "$name" 2>&1)
        judge "$name ${exe%% *}" "${exe#* }" $? "$out"
    done
}

bugs() {
    local name plain rand asan check
    while read -r name plain rand asan check; do
        case $name in '' | '#'*) continue ;; esac
        bug "$name" "$plain" "$rand" "$asan" "$check"
    done <<'TABLE'
# name             plain                      rand  asan                  check
row_sum            ok                         ok    ok                    ok
gemm               ok                         ok    ok                    ok
exchange           ok                         ok    ok                    ok
vector             ok                         ok    ok                    ok
histogram          ok                         ok    ok                    ok
neighbours         ok                         ok    ok                    ok
# barriers forgotten or misplaced
row_sum_raw        num                        num   num                   bug_kernels.cu:
row_sum_war        -                          num   -                     race.\(write.after.read\).*shared.part.*bug_kernels.cu:.*bug_kernels.cu:
gemm_raw           num                        num   num                   race.\(read.after.write\)|in.flight
gemm_war           -                          num   -                     race.\(write.after.read\).on.dynamic.shared
exchange_nosync    num                        num   num                   uninitialised|race
histogram_raw      num                        any   num                   uninitialised|race
histogram_war      num                        any   num                   race.\(read.after.write\).on.shared.h
row_sum_diverge    divergent.__syncthreads|thread.exits err err           err
row_sum_return     thread.exits.while|exited           err   err         err
row_sum_mask       deadlock|divergent         err   err                   err
gemm_mask          divergent.warp.collective  err   err                   err
two_lines          divergent.warp.collective  err   err                   err
named_barrier      deadlock                   err   err                   deadlock
exited             exits.while.lane|exited.lanes        err err           err
not_in_mask        not.in.its.mask            err   err                   err
inactive_source    num                        num   num                   num
# asynchronous copies
gemm_nowait        never.waited.for           err   err                   still.in.flight.*bug_kernels.cu:
unwaited           never.waited.for           err   err                   err
in_flight          num                        num   num                   still.in.flight.*bug_kernels.cu:
misaligned_copy    misaligned.address         err   err                   err
copy_past_end      err                        err   heap-buffer-overflow  past.the.end.*bug_kernels.cu:
# memory
row_sum_oob        num                        num   err                   out.of.bounds.*bug_kernels.cu:
row_sum_uninit     num                        num   num                   uninitialised.shared.memory.*shared.part
histogram_uninit   num                        num   num                   uninitialised.shared.memory.*atomic
row_sum_global     err                        err   heap-buffer-overflow  past.the.end.of.an.allocation.*bug_kernels.cu:
gemm_oob           num                        num   err                   out.of.bounds
gemm_small         -                          -     use-after-poison      out.of.bounds
vector_misaligned  -                          -     misaligned.address    -
vector_hostptr     -                          -     -                     host.pointer
guard              guard.*overwritten         err   heap-buffer-overflow  past.the.end.of.an.allocation
freed              invalid.memory.access      err   heap-use-after-free   no.device.allocation
stack              fiber.stack.overflow       err   stack-overflow        fiber.stack.overflow
overlap            -                          -     -                     race.between.blocks:.global.write.*block.0.wrote
ticket             -                          -     -                     race.between.blocks
read_write         -                          -     -                     race.between.blocks:.global.(write|read)
# fragments: only numbers show them
gemm_frag          num                        num   num                   num
gemm_trans         num                        num   num                   num
gemm_misaligned    not.aligned.to.16          err   err                   err
# launches
opt_in             65536.B.of.dynamic.shared  err   err                   err
static_dynamic     static.and.dynamic.shared  err   err                   err
threads            bad.block.size             err   err                   err
grid               bad.grid.size              err   err                   err
TABLE
}

rejects() { # rejects NAME TEXT: a kernel file with TEXT must not compile
    printf '#include "kernels/simt/simt.h"\n%s\n' "$2" |
        "$cxx" -x c++ -std=c++17 -fsyntax-only -I. -Ikernels/simt/include - >/dev/null 2>&1
    verdict "does not compile: $1" $(($? == 0))
}

printf '#include "kernels/simt/simt.h"\nfloat f(float4 v, __nv_bfloat16 a) { return v.x + __bfloat162float(a); }\n' |
    "$cxx" -x c++ -std=c++17 -fsyntax-only -I. -Ikernels/simt/include -
verdict "compiles: empty kernel file" $?
rejects "plain __shared__" 'void f() { __shared__ float x[4]; x[0] = 1; }'
rejects "bf16 arithmetic" '__nv_bfloat16 f(__nv_bfloat16 a, __nv_bfloat16 b) { return a * b; }'
rejects "bf16 times float" 'float f(__nv_bfloat16 a, float b) { return a * b; }'
rejects "shuffle of a struct" 'float2 f(float2 v) { return __shfl_xor_sync(~0u, v, 1); }'
rejects "wrong argument type" '__global__ void k(float *p) {} void f(double *p) { LAUNCH(k, 1, 1, 0, 0, p); }'
unit
bugs
printf '%d passed, %d failed\n' $passed $failed
[ $failed = 0 ]
