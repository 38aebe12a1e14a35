#!/bin/bash
# test_convert.sh - convert as a script meets it: exit status, one sentence, what is written and what is not. Ends with `N passed, N failed`.
# Program: $STAGEDIFF, else build/cpu/stagediff.
cd "$(dirname "$0")/../.." || exit 1
program=${STAGEDIFF:-build/cpu/stagediff} golden=tests/sae/golden
dir=$(mktemp -d) passed=0 failed=0
trap 'rm -rf "$dir"' EXIT

# expect STATUS "what must be said" "title" COMMAND...: status, and every part (split at |) on stdout or stderr
expect() {
    local want=$1 says=$2 title=$3 part
    shift 3
    "$@" >"$dir/out" 2>"$dir/err"
    local got=$? ok=1
    [ "$got" = "$want" ] || ok=0
    IFS='|' read -ra parts <<<"$says"
    for part in "${parts[@]}"; do grep -qF -- "$part" "$dir/out" "$dir/err" || ok=0; done
    [ "$want" = 2 ] && [ "$(wc -l <"$dir/err")" != 1 ] && ok=0 # one sentence
    if [ $ok = 1 ]; then passed=$((passed + 1)); else
        failed=$((failed + 1))
        echo "FAILED $title: status $got (expected $want), expected to read \"$says\""
        head -5 "$dir/out" "$dir/err"
    fi
}
# there FILE... / absent FILE...: on disk, or not
there() { for f in "$@"; do [ -s "$f" ] && passed=$((passed + 1)) || { failed=$((failed + 1)) && echo "FAILED: no $f"; }; done; }
absent() { for f in "$@"; do [ ! -e "$f" ] && passed=$((passed + 1)) || { failed=$((failed + 1)) && echo "FAILED: there is a $f"; }; done; }

topk=$golden/sparsify_topk/layers.3 jump=$golden/saelens_jumprelu
expect 0 '' 'to saelens' $program convert $topk "$dir/lens" --to saelens
expect 0 '' 'to sparsify' $program convert $golden/saelens_topk "$dir/sparsify" --to sparsify
expect 0 'k 50|5' 'to mmdiff, with the note on k' $program convert $topk "$dir/mm.pt" --to mmdiff
there "$dir/lens/cfg.json" "$dir/lens/sae_weights.safetensors" "$dir/sparsify/cfg.json" "$dir/sparsify/sae.safetensors" "$dir/mm.pt"
grep -q '"hook_name": "blocks.3.hook_resid_post"' "$dir/lens/cfg.json" && passed=$((passed + 1)) || { failed=$((failed + 1)) && echo "FAILED: no hook"; }
before=$(cksum "$dir/mm.pt" "$dir/lens"/*)
expect 2 'exists already|--force' 'a file in the way' $program convert $golden/qwen_scope/SAE-W64-L0_5 "$dir/mm.pt" --to mmdiff
expect 2 'exists already|--force' 'a folder in the way' $program convert $jump "$dir/lens" --to saelens
[ "$before" = "$(cksum "$dir/mm.pt" "$dir/lens"/*)" ] && passed=$((passed + 1)) || { failed=$((failed + 1)) && echo "FAILED: something was written"; }
expect 0 '' '--force' $program convert $jump "$dir/lens" --to saelens --force
grep -q '"architecture": "jumprelu"' "$dir/lens/cfg.json" && passed=$((passed + 1)) || { failed=$((failed + 1)) && echo "FAILED: not written over"; }
expect 2 'is a file|saelens' 'a folder layout over a file' $program convert $topk "$dir/mm.pt" --to saelens --force
expect 2 'is a folder|mmdiff' 'a file layout over a folder' $program convert $topk "$dir/lens" --to mmdiff --force
expect 2 'saelens_jumprelu|sparsify|jumprelu' 'jumprelu as sparsify' $program convert $jump "$dir/none" --to sparsify
expect 2 'sparsify_signed|signed' 'signed as saelens' $program convert $golden/sparsify_signed/layer_3 "$dir/none" --to saelens
expect 2 'negative' 'negative thresholds as saelens' $program convert $golden/mmdiff_jumprelu "$dir/none" --to saelens
expect 2 'saelens, sparsify or mmdiff|did you mean sparsify' 'an unknown layout' $program convert $topk "$dir/none" --to sparsfy
expect 2 'does not exist' 'a parent that is not there' $program convert $topk "$dir/gone/none" --to saelens
expect 2 'does not exist' 'the same for a file' $program convert $topk "$dir/gone/none.pt" --to mmdiff
mkdir "$dir/empty"
expect 2 'no dictionary' 'nothing to convert' $program convert "$dir/empty" "$dir/none" --to saelens
absent "$dir/none" "$dir/gone"
expect 0 'its own k is 5' '--k' $program convert $topk "$dir/k" --to saelens --k 7
grep -q '"k": 7' "$dir/k/cfg.json" && passed=$((passed + 1)) || { failed=$((failed + 1)) && echo "FAILED: --k"; }
expect 2 '--k 7|jumprelu' '--k of a dictionary without one' $program convert $jump "$dir/none" --to saelens --k 7
if [ -w /dev/full ]; then
    expect 2 'cannot be written' 'a full disk' $program convert $topk /dev/full --to mmdiff --force
fi

echo "$passed passed, $failed failed"
[ $failed = 0 ]
