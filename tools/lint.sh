#!/bin/bash
# lint.sh - what no compiler checks: include direction, house rules of the SIMT layer, file and function lengths, format, cppcheck.
# Prints each violation as file:line: rule; exit status 1 when there is one.
cd "$(dirname "$0")/.." || exit 2
bad=0
say() { echo "$1"; bad=1; }

# Includes go one way: analysis -> sae, models -> kernels -> host. sae never sees a model, host sees nothing but itself.
forbid() { # folder, pattern of forbidden include folders
    local hits
    hits=$(grep -nE "^#include \"($2)/" "$1"/*.[ch] "$1"/*.cu 2>/dev/null)
    [ -z "$hits" ] || while read -r h; do say "$h: $1/ may not include this"; done <<<"$hits"
}
forbid host 'kernels|models|sae|analysis'
forbid kernels 'models|sae|analysis'
forbid models 'sae|analysis'
forbid sae 'models|analysis'

# House rules: launches, shared memory and inline assembly go through the layer, so that the CPU can run them.
for f in kernels/*.cu kernels/*.cuh; do
    [ -e "$f" ] || continue
    while read -r h; do [ -n "$h" ] && say "$f:$h: raw <<<>>>, __shared__ or asm: use LAUNCH, SHARED, DYN_SMEM, ptx.cuh"; done < <(
        sed 's@//.*@@' "$f" | grep -nE '<<<|__shared__|\basm\b' | grep -vE '^\d*:\s*\*' | cut -c1-120)
done

# Lengths: a file a reader can hold, a function that fits two screens.
while read -r n f; do
    [ "$f" != total ] && [ "$n" -gt 620 ] && say "$f:$n: longer than 620 lines"
done < <(wc -l host/*.[ch] kernels/*.[ch] kernels/*.cu kernels/simt/*.[hc]* models/*.[ch] sae/*.[ch] analysis/*.[ch] bench/*.[ch] tests/*/*.[ch] 2>/dev/null)
for f in host/*.c kernels/*.c kernels/*.cu models/*.c sae/*.c analysis/*.c bench/*.c; do
    [ -e "$f" ] || continue
    awk -v f="$f" '/^[a-z_A-Z].*\{$/ && !/^(struct|enum|union|static const|const|extern|typedef)/ { start = NR }
        /^\}/ { if (start && NR - start > 90) { printf "%s:%d: function of %d lines\n", f, start, NR - start; e = 1 } start = 0 } END { exit e }' "$f" || bad=1
done

if command -v clang-format >/dev/null; then
    git ls-files '*.c' '*.h' '*.cu' '*.cuh' '*.cpp' | xargs clang-format --dry-run 2>&1 | grep -E 'warning' | cut -d: -f1 | sort | uniq -c |
        { while read -r n f; do echo "$f: $n places differ from clang-format (make format)"; e=1; done; [ -z "${e:-}" ]; } || bad=1
fi
if command -v cppcheck >/dev/null; then
    cppcheck --quiet --std=c11 --enable=warning,portability --inline-suppr --error-exitcode=1 -I. --suppress=missingIncludeSystem \
        --suppress=nullPointerRedundantCheck --suppress=uninitvar -j "$(nproc)" host models sae analysis bench kernels/*.c || bad=1
fi
[ "$bad" = 0 ] && echo "lint: nothing to say"
exit $bad
