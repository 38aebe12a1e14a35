#!/bin/bash
# test_commands.sh - convert, encode and info of dictionaries as a script meets them: exit status, one sentence, what is written and what is
# not. Ends with `N passed, N failed`.
# Program: $STAGEDIFF, else build/cpu/stagediff.
cd "$(dirname "$0")/../.." || exit 1
program=${STAGEDIFF:-build/cpu/stagediff} golden=tests/sae/golden
. tests/expect.sh

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

info="$program info"
expect 0 'sparse dictionary, Llama Scope v1|d_sae                  40|activation             jumprelu|saelens, mmdiff' 'info' $info $golden/llama_scope
expect 0 '"kind":"sae","format":"OpenMOSS (since June 2025)","dims":{"d_in":16,"d_sae":64,"k":5,"layer":2|"problems":[]|no layout' 'info as JSON' $info $golden/openmoss_topk --json
expect 0 '"hook_in":"blocks.2.ln2.hook_normalized","hook_out":"blocks.2.hook_mlp_out"|a transcoder' 'info of a transcoder' $info $golden/openmoss_transcoder --json
expect 0 '"format":"OpenMOSS (early 2025)"' 'info, early OpenMOSS' $info $golden/openmoss_early --json
expect 0 '"format":"SAELens"|"activation":"jumprelu"|"parameters":2256' 'info, SAELens' $info $golden/saelens_gated --json
expect 0 '"format":"sparsify"|"k":8|"activation":"groupmax"' 'info, sparsify' $info $golden/sparsify_groupmax/layers.3.mlp --json
expect 0 '"format":"Gemma Scope"|"layer":6' 'info, Gemma Scope' $info $golden/gemma_scope/layer_6/width_16k/average_l0_9 --json
expect 0 '"format":"dictionary_learning"|"files":["ae.pt"]' 'info, dictionary_learning' $info $golden/dl_matryoshka --json
expect 0 '"format":"MMDiff"|"k":50|--k gives another' 'info, MMDiff' $info $golden/mmdiff_topk/text-only_layer_3.pt --json
expect 0 '"format":"Qwen Scope"|"k":5,"layer":7' 'info, Qwen Scope' $info $golden/qwen_scope/SAE-W64-L0_5/layer7.sae.pt --json
mkdir "$dir/cut" && cp $golden/sparsify_topk/layers.3/cfg.json "$dir/cut" && head -c 3000 $golden/sparsify_topk/layers.3/sae.safetensors >"$dir/cut/sae.safetensors"
expect 0 '"format":"sparsify"|"k":5|cut short' 'info of a truncated one' $info "$dir/cut" --json
mkdir "$dir/bare" && cp $golden/llama_scope/hyperparams.json "$dir/bare"
expect 0 'Llama Scope v1|no weights beside it' 'info without weights' $info "$dir/bare"
head -c 3000 $golden/mmdiff_topk/text-only_layer_3.pt >"$dir/cut.pt"
expect 2 'cut.pt|cut short' 'info of a truncated file' $info "$dir/cut.pt"
expect 2 'no such folder' 'info of nothing' $info "$dir/gone"

mkdir -p "$dir/run/checkpoints" && cp $golden/dl_topk/config.json "$dir/run" && cp $golden/dl_topk/ae.pt "$dir/run/checkpoints/ae_100.pt"
expect 0 '"format":"dictionary_learning"|"k":5' 'a checkpoint of a training run' $info "$dir/run/checkpoints/ae_100.pt" --json
mkdir "$dir/model" && cp $golden/mmdiff_topk/text-only_layer_3.pt tests/models/golden/tiny_llama/config.json "$dir/model"
expect 0 '"format":"MMDiff"' 'a dictionary beside a model' $info "$dir/model/text-only_layer_3.pt" --json
mkdir -p "$dir/scope/checkpoints" && cp $golden/llama_scope/checkpoints/final.safetensors "$dir/scope/checkpoints" && grep -v '"d_sae"' $golden/llama_scope/hyperparams.json >"$dir/scope/hyperparams.json"
expect 0 '"d_sae":40' 'features counted where d_sae is not said' $info "$dir/scope" --json

encode="$program encode --out $dir/z.safetensors --quiet --tensor x --in"
expect 0 '' 'encode' $encode $golden/mmdiff_topk/expected.safetensors --sae $golden/mmdiff_topk
expect 0 '' 'encode with another k' $encode $golden/mmdiff_topk/expected.safetensors --sae $golden/mmdiff_topk --k 3
expect 0 '"shape":[16,3]' 'that k' head -c 400 "$dir/z.safetensors"
expect 2 '--k must divide 64' 'a k that groupmax cannot have' $encode $golden/sparsify_groupmax/expected.safetensors --sae $golden/sparsify_groupmax/layers.3.mlp --k 7

train="$program train --rows $golden/sparsify_topk/expected.safetensors --tensor x --k 6 --steps 2 --batch 8 --lr 1e-3 --quiet"
expect 0 '' 'training from a signed one' $train --sae $golden/sparsify_signed/layer_3 --out "$dir/trained"
expect 0 '"k":6|"activation":"topk"' 'what it gave' $info "$dir/trained" --json
expect 2 'saelens_transcoder|a transcoder' 'training from a transcoder' $train --sae $golden/saelens_transcoder --out "$dir/none"
expect 2 'saelens_layer_norm|layer_norm' 'training where rows are normalised' $train --sae $golden/saelens_layer_norm --out "$dir/none"

echo "$passed passed, $failed failed"
[ $failed = 0 ]
