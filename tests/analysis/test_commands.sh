#!/bin/bash
# test_commands.sh - evaluate and select as a script meets them: output, exit status, the error's sentence. Ends with
# `N passed, N failed`. Program: $STAGEDIFF, else build/cpu/stagediff.
cd "$(dirname "$0")/../.." || exit 1
program=${STAGEDIFF:-build/cpu/stagediff} tiny=tests/models/golden world=$PWD/tools/tinyworld/world
. tests/expect.sh

evaluate="$program evaluate --model $world/vlm --quiet"
head -20 $world/data/vsr_test.jsonl >"$dir/vsr.jsonl" && ln -s $world/data/images "$dir/images"
expect 0 'left of|20' 'a table by relation' $evaluate --data "$dir/vsr.jsonl" --batch 7
expect 0 '"task":"vsr"|"n":20|"relations":{|"p_correct":0.' 'VSR as JSON' $evaluate --data "$dir/vsr.jsonl" --json --out "$dir/answers.jsonl"
expect 0 '"p_yes":|"text":"yes"|"text":"no"' 'its answers' cat "$dir/answers.jsonl"
[ "$(wc -l <"$dir/answers.jsonl")" = 20 ] || { failed=$((failed + 1)); echo "FAILED: 20 answers"; }
expect 0 '"task":"vqa"|"samples":6|"n":0|"accuracy":null' 'nothing to score against' $evaluate --data "$dir/vsr.jsonl" --task vqa --samples 6 --json
expect 0 '"n":4' 'another question' $evaluate --data "$dir/vsr.jsonl" --samples 4 --ask 'Is it so that {caption}' --json
expect 2 '{question}|line 1' 'a question that is not there' $evaluate --data "$dir/vsr.jsonl" --ask '{question}'
expect 2 '--task must be vqa or vsr' 'an unknown task' $evaluate --data "$dir/vsr.jsonl" --task ocr
expect 2 'no such folder of pictures' 'no pictures' $evaluate --data "$dir/vsr.jsonl" --images "$dir/nowhere"
expect 2 '--model DIR and --data FILE' 'nothing given' $program evaluate
expect 2 'goes with --model' 'both ways' $program evaluate tools/tinyworld/demo.json --task vqa

# the benchmark's own files: two pictures of the world under COCO's names
mkdir "$dir/coco" && cp $world/data/images/test_0000.png "$dir/coco/COCO_val2014_000000000009.jpg"
cat >"$dir/q.json" <<'END'
{"data_subtype": "val2014", "questions": [{"image_id": 9, "question": "Is there a white circle?", "question_id": 90},
 {"image_id": 9, "question": "How many white objects are there?", "question_id": 91}]}
END
cat >"$dir/a.json" <<'END'
{"annotations": [{"question_id": 91, "answer_type": "number", "answers": [{"answer": "one", "answer_id": 1}, {"answer": "1", "answer_id": 2},
 {"answer": "The one.", "answer_id": 3}, {"answer": "2", "answer_id": 4}]}, {"question_id": 90, "answer_type": "yes/no", "answers": [{"answer": "yes"}]}]}
END
expect 0 '"correct":1.75|"yes/no":{"n":1|"number":{"n":1,"correct":0.75' 'VQAv2 files' $evaluate --data "$dir/q.json" --annotations "$dir/a.json" --images "$dir/coco" --json --out "$dir/answers.jsonl"
expect 0 '{"id":91,"text":"1","score":0.75' 'answers by question id' tail -1 "$dir/answers.jsonl"
expect 2 'annotations go with' 'annotations of lines' $evaluate --data "$dir/vsr.jsonl" --annotations "$dir/a.json"
echo '{"images": [{"id": 9, "file_name": "COCO_val2014_000000000009.jpg"}], "annotations": [{"image_id": 9, "caption": "shapes"}]}' >"$dir/c.json"
expect 0 '"task":"vqa"|"samples":1|"n":0' 'COCO captions' $evaluate --data "$dir/c.json" --images "$dir/coco" --json --max-new-tokens 4

# every word begins with the token of a blank: yes and no cannot be told apart by the next token
cp -r $tiny/tiny_llama "$dir/model" && sed -i 's/"add_prefix_space": *false/"add_prefix_space": true/g' "$dir/model/tokenizer.json"
echo '{"prompt": "a", "label": 1}' >"$dir/l.jsonl"
expect 2 'cannot tell yes from no|--task vqa' 'no first token of its own' $program evaluate --model "$dir/model" --data "$dir/l.jsonl"
expect 0 '"n":1' 'a tokenizer that can' $program evaluate --model $tiny/tiny_llama --data "$dir/l.jsonl" --json

printf '{"out": "run", "model": "%s/vlm", "data": {"train": "vsr.jsonl"}}' $world >"$dir/c.json"
expect 2 'has no "evaluate"' 'no such section' $program evaluate "$dir/c.json"
expect 2 'has no "select"' 'no such section' $program select "$dir/c.json"
echo "$passed passed, $failed failed"
[ $failed = 0 ]
