#!/bin/bash
# test_commands.sh - info, generate and harvest as a script meets them: output, exit status, the error's sentence. Ends with
# `N passed, N failed`. Program: $STAGEDIFF, else build/cpu/stagediff.
cd "$(dirname "$0")/../.." || exit 1
program=${STAGEDIFF:-build/cpu/stagediff} tiny=tests/models/golden world=tools/tinyworld/world
. tests/expect.sh

expect 0 'language model, llama layout|head_dim               24' 'info of an LLM' $program info $tiny/tiny_llama
expect 0 '"kind":"llava","format":"llava-hf"|"n_kv_heads":1|"image_rows":9|"dtypes":{"BF16":87336}|"problems":[]' 'info as JSON' $program info $tiny/tiny_llava --json
cp -r $tiny/tiny_llama "$dir/a" && rm "$dir/a/tokenizer.json" && sed -i 's/"intermediate_size": 40/"intermediate_size": 48/' "$dir/a/config.json"
expect 0 '"kind":"llm"|mlp.gate_proj.weight: expected shape (48, 32), found (40, 32)|tokenizer.json' 'info of a broken folder' $program info "$dir/a" --json
mkdir "$dir/lora" && echo '{}' >"$dir/lora/adapter_config.json"
expect 2 'LoRA adapter|merge' 'a LoRA folder' $program generate --model "$dir/lora" --prompt a
expect 2 'GGUF|tools/gguf_to_hf.py' 'a GGUF file' $program generate --model "$dir/x.gguf" --prompt a
mkdir "$dir/meta" && echo '{}' >"$dir/meta/params.json"
expect 2 'params.json|convert_llama_weights_to_hf' 'Meta layout' $program generate --model "$dir/meta" --prompt a
rm "$dir/a/config.json"
expect 0 '"kind":"llm"|config.json' 'kind by tensors alone' $program info "$dir/a" --json
expect 2 'config.json' 'info of an empty folder' $program info "$dir"
expect 2 'no such folder' 'info of nothing' $program info "$dir/nothing"

expect 0 '"id":0|"prompt_ids":[|"ids":[|"stopped":"length"' 'generate as JSON' $program generate --model $tiny/tiny_llama --prompt 'hello' --max-new-tokens 3 --json
expect 2 '--prompt' 'generate needs a prompt' $program generate --model $tiny/tiny_llama
expect 2 '97 tokens|96' 'too long for the model' $program generate --model $tiny/tiny_llama --prompt "$(printf 'a%.0s' $(seq 97))"
expect 2 'no vision tower' 'a picture for an LLM' $program generate --model $tiny/tiny_llama --prompt 'a' --image nothing.png

printf '{"prompt": "abc", "answer": "de"}\n\n{"prompt": "f"}\n' >"$dir/data.jsonl"
harvest="$program harvest --model $tiny/tiny_llama --data $dir/data.jsonl --out $dir/h.safetensors --points"
expect 0 '' 'harvest' $harvest 'hook_embed,blocks.*.hook_resid_post,logits'
expect 0 '0/blocks.1.hook_resid_post|1/tokens|1/logits|"shape":[5,32]|"shape":[1,261]' 'what harvest wrote' head -c 4000 "$dir/h.safetensors"
expect 0 '' 'harvest of last rows' $harvest 'blocks.0.hook_mlp_out,logits' --last-only --batch 1
expect 0 '"shape":[1,32]|"shape":[1,261]' 'last rows' head -c 4000 "$dir/h.safetensors"
echo '[]' >"$dir/none.json" && echo '[{"op":"head","heads":[0,1],"mode":"zero"}]' >"$dir/zero.json" && echo '{"op":"head"}' >"$dir/bare.json"
$harvest 'blocks.*.hook_attn_out' && mv "$dir/h.safetensors" "$dir/plain.safetensors"
expect 0 '' 'an empty list of edits' $harvest 'blocks.*.hook_attn_out' --edit "$dir/none.json"
expect 0 '' 'changes nothing' cmp "$dir/plain.safetensors" "$dir/h.safetensors"
expect 0 '' 'an edit' $harvest 'blocks.*.hook_attn_out' --edit "$dir/zero.json"
expect 1 'differ' 'changes something' cmp "$dir/plain.safetensors" "$dir/h.safetensors"
expect 2 'bare.json: expected a list of edits' 'a bare edit' $harvest 'blocks.*.hook_attn_out' --edit "$dir/bare.json"
expect 2 'zero.json' 'an edit list that is not there' $harvest hook_embed --edit "$dir/no/zero.json"
expect 0 '"ids":[' 'generate with an edit' $program generate --model $tiny/tiny_llama --prompt 'hello' --max-new-tokens 3 --json --edit "$dir/zero.json"
rm "$dir/h.safetensors"
expect 2 'blocks.2.hook_resid_post|layers 0 to 1' 'a layer that is not there' $harvest blocks.2.hook_resid_post
expect 2 'no vision tower' 'a vision point of an LLM' $harvest vision.selected
expect 2 'unknown point "hook_resid"' 'an unknown point' $harvest hook_resid
printf '{"prompt": "abc"}\n{"prompt": 3}\n' >"$dir/data.jsonl"
expect 2 'data.jsonl|2' 'a bad line' $harvest hook_embed
printf '{"prompt": "abc"}\n{"prompt": "a", "image": "gone.png"}\n' >"$dir/data.jsonl"
expect 2 'gone.png|line 2' 'a missing picture' $program harvest --model $tiny/tiny_llava --data "$dir/data.jsonl" --out "$dir/h.safetensors" --points projector
[ -e "$dir/h.safetensors" ] && failed=$((failed + 1)) && echo "FAILED: an output file of a failed run"

vectors="$program vectors --out $dir/v.safetensors --method"
expect 0 '"method":"decoder","tensors":[{"name":"decoder","row":0,"feature":3,"norm":' 'decoder rows' $vectors decoder --sae $tiny/edits/sae_topk --features 3,0
expect 0 '"decoder"|"shape":[2,48]' 'what vectors wrote' head -c 400 "$dir/v.safetensors"
rm "$dir/v.safetensors"
expect 2 '--features needs numbers from 0 to 39' 'a feature that is not there' $vectors decoder --sae $tiny/edits/sae_topk --features 3,40
expect 2 'decoder, caa, mmdiff-scale, mmdiff-sum or means' 'an unknown method' $vectors pca
expect 2 'needs --model DIR and --data FILE' 'CAA without a model' $vectors caa
expect 2 'does not take --sae' 'CAA with a dictionary' $vectors caa --model $tiny/tiny_llama --data "$dir/data.jsonl" --sae $tiny/edits/sae_topk
printf '{"prompt": "abc", "answer": "yes"}\n{"prompt": "abc", "answer": "blue"}\n' >"$dir/pairs.jsonl"
expect 2 "pairs.jsonl, line 2: needs the key 'incorrect'" 'no wrong answer' $vectors caa --model $tiny/tiny_llama --data "$dir/pairs.jsonl"
[ -e "$dir/v.safetensors" ] && failed=$((failed + 1)) && echo "FAILED: an output file of failed vectors"
printf '{"prompt": "abc", "answer": "yes"}\n{"prompt": "abc", "answer": "blue", "incorrect": "red"}\n' >"$dir/pairs.jsonl"
expect 0 '"contrast":"answers","positive":2,"negative":2|"name":"blocks.1.hook_resid_post"' 'CAA' $vectors caa --model $tiny/tiny_llama --data "$dir/pairs.jsonl"
expect 0 '"name":"blocks.0.attn.hook_z"' 'means' $vectors means --model $tiny/tiny_llama --data "$dir/pairs.jsonl"
echo '[{"op":"head","heads":[0],"mode":"mean","mean":"v.safetensors"}]' >"$dir/mean.json"
expect 0 '"ids":[' 'an edit with them' $program generate --model $tiny/tiny_llama --prompt 'hello' --max-new-tokens 3 --json --edit "$dir/mean.json"
# LLaVA's first stage: parts apart, and what is said of the one that is missing
expect 0 'llava layout|language model and the tokenizer are read from|10 rows: 1 of 3 tower layers|class row go through 3 linear layers' 'info of a projector alone' $program info $tiny/tiny_stage1
cp -r $tiny/tiny_stage1 "$dir/stage1" && mv "$dir/stage1/base" "$dir/moved"
expect 2 'projector alone|"base" is not on this disk|--base DIR' 'its language model missing' $program generate --model "$dir/stage1" --prompt a
expect 0 '"problems":["|--base DIR' 'and info of it' $program info "$dir/stage1" --json
expect 0 '"stopped"' 'its language model named by hand' $program generate --model "$dir/stage1" --base "$dir/moved" --prompt a --max-new-tokens 2 --json
rm -r "$dir/stage1/tower"
expect 2 '"tower"|--vision-tower DIR' 'its tower missing' $program generate --model "$dir/stage1" --base "$dir/moved" --prompt a

# the main job on a plain language model: text lines, no base, no pictures
for i in 1 2 3 4 5 6 7 8 9 10 11 12; do echo "{\"prompt\": \"line $i of a text, and some more of it\"}"; done >"$dir/text.jsonl"
echo "{\"out\": \"run\", \"model\": \"$PWD/$tiny/tiny_llama\", \"data\": {\"train\": \"text.jsonl\"}, \"train\": {\"k\": 4, \"batch\": 64, \"ring_rows\": ROWS}}" >"$dir/rows.json"
sed 's/ROWS/512/' "$dir/rows.json" >"$dir/run.json" && sed 's/ROWS/64/' "$dir/rows.json" >"$dir/small.json"
expect 2 'train.ring_rows|8 samples|rows' 'plan of a block that no pass fits in' $program plan "$dir/small.json"
expect 0 '"pictures":0|"layers_at_once":2|"weights":' 'plan of a plain LLM' $program plan "$dir/run.json" --json
[ -e "$dir/run" ] && failed=$((failed + 1)) && echo "FAILED: plan wrote something"
expect 0 'random start|report.html' 'run on a plain LLM' $program run "$dir/run.json"

if [ -d $world/vlm ]; then
    head -1 $world/data/vqa_test.jsonl >"$dir/data.jsonl" && ln -s "$PWD/$world/data/images" "$dir/images"
    expect 0 '' 'harvest at the tower' $program harvest --model $world/vlm --data "$dir/data.jsonl" --out "$dir/h.safetensors" --points 'vision.4.hook_resid_post,vision.selected,projector,ln_final.hook_normalized'
    expect 0 '0/vision.4.hook_resid_post|"shape":[65,96]|"shape":[64,96]|"shape":[64,160]' 'rows of the tower' head -c 4000 "$dir/h.safetensors"
    expect 0 '' 'a bare tower takes pictures alone' $program harvest --model $world/clip --data "$dir/data.jsonl" --out "$dir/h.safetensors" --points 'vision.*.hook_resid_post'
    expect 2 'vision tower alone' 'edits of a bare tower' $program harvest --model $world/clip --data "$dir/data.jsonl" --out "$dir/h.safetensors" --points 'vision.*.hook_resid_post' --edit "$dir/none.json"
    expect 2 'vision tower alone' 'a text point of a bare tower' $program harvest --model $world/clip --data "$dir/data.jsonl" --out "$dir/h.safetensors" --points logits
    head -12 $world/data/vsr_test.jsonl >"$dir/vsr.jsonl"
    echo '[{"op":"head","layers":[2,3],"heads":[0,2],"mode":"zero","after_image":true}]' >"$dir/two.json"
    intervene="$program intervene --model $world/vlm --data $dir/vsr.jsonl --edit $dir/two.json"
    expect 0 '"task":"vsr","n":12,"baseline":|"mcnemar_p":|"controls":20,"control_mean":|"control_deltas":[' 'intervene as JSON' $intervene --json --out "$dir/answers.jsonl"
    expect 0 '{"baseline":{"id":|"intervened":{' 'its answers' head -1 "$dir/answers.jsonl"
    expect 0 'right of|McNemar' 'intervene as a table' $intervene --controls 0
    expect 2 'at least 20, found 5' 'too few controls' $intervene --controls 5
    expect 2 '--model DIR, --data FILE and --edit' 'intervene needs edits' $program intervene --model $world/vlm --data "$dir/vsr.jsonl"
    steer="$program steer --model $world/vlm --train $dir/vsr.jsonl --dev $dir/vsr.jsonl --test $dir/vsr.jsonl --strengths 1,30"
    expect 0 '"method":"caa","positive":12,"negative":12,"layer":|"dev":[{"layer":2,"strength":1.0,|"test":{"n":12,' 'steer as JSON' $steer --layers 2,5 --json --controls 0
    expect 0 'chosen|random directions' 'steer as a table' $steer --layers 2,5
    expect 2 'needs --sae DIR and --feature F' 'a feature is needed' $steer --method mmdiff-sum
    expect 2 'numbers from 0 to 7' 'a layer that is not there' $steer --layers 8
    cp -r $world/vlm "$dir/vlm" && sed -i 's|"../clip"|"someone/tower"|' "$dir/vlm/config.json"
    expect 2 '--vision-tower' 'a tower that is nowhere' $program generate --model "$dir/vlm" --prompt a
    expect 0 'template llama_3_1|64 rows|4 of 5 tower layers|square of the mean colour' 'what info says of use' $program info $world/vlm
    expect 0 '' 'a tower named by hand' $program generate --model "$dir/vlm" --vision-tower $world/clip --prompt a --max-new-tokens 1
fi
# what plan announces against the largest size that the process had
if [ -d $world/vlm ]; then
    w=$PWD/$world
    echo "{\"out\": \"rss\", \"model\": \"$w/vlm\", \"saes\": \"$w/saes\", \"data\": {\"train\": \"$w/data/vqa_train.jsonl\", \"train_samples\": 200, \"validation_samples\": 16}, \"train\": {\"k\": 16, \"batch\": 1024, \"ring_rows\": 16384}}" >"$dir/rss.json"
    planned=$($program plan "$dir/rss.json" --json --threads 2 | sed 's/.*"process":\([0-9]*\).*/\1/') peak=0
    $program train "$dir/rss.json" --quiet --threads 2 &
    pid=$!
    while kill -0 $pid 2>"$dir/err"; do
        now=$(sed -n 's/VmHWM:[^0-9]*\([0-9]*\) kB/\1/p' /proc/$pid/status 2>"$dir/err")
        peak=${now:-$peak}
        sleep 0.05
    done
    share=$((100 * planned / (peak * 1024)))
    echo "plan announced $((planned / 1000000)) MB, the process had $((peak * 1024 / 1000000)) MB: $share %"
    if [ $share -ge 85 ] && [ $share -le 115 ]; then passed=$((passed + 1)); else failed=$((failed + 1)) && echo "FAILED: plan is off"; fi
fi
echo "$passed passed, $failed failed"
[ $failed = 0 ]
