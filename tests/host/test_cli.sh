#!/bin/bash
# test_cli.sh - the command line's promises: exit status, one sentence on stderr, nothing else on stdout, no partial files.
# Needs build/cpu/stagediff (or STAGEDIFF=program). Last line: "N passed, N failed".
cd "$(dirname "$0")/../.." || exit 2
program=$(realpath -e "${STAGEDIFF:-build/cpu/stagediff}") || exit 2
golden=$PWD/tests/golden/host
work=$(mktemp -d) || exit 2
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 2
passed=0 failed=0

# want STATUS STDOUT-PATTERN STDERR-PATTERN COMMAND...   patterns of grep -E over the whole text; '' means nothing at all
want() {
    local status=$1 out=$2 err=$3
    shift 3
    "$@" >out.txt 2>err.txt </dev/null
    local got=$? why=
    [ $got = "$status" ] || why="status $got, expected $status"
    if [ -z "$out" ]; then [ -s out.txt ] && why="$why; stdout should be empty"; else grep -qE -- "$out" out.txt || why="$why; stdout lacks '$out'"; fi
    if [ -z "$err" ]; then [ -s err.txt ] && why="$why; stderr should be empty"; else grep -qE -- "$err" err.txt || why="$why; stderr lacks '$err'"; fi
    [ "$status" = 2 ] && [ "$(wc -l <err.txt)" != 1 ] && why="$why; stderr should be one line"
    result "$why" "$@"
}
result() {
    local why=$1
    shift
    if [ -z "$why" ]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAIL $*: $why"
        [ -s out.txt ] && head -c 300 out.txt
        [ -s err.txt ] && head -c 300 err.txt
    fi
}
gone() { # files that must not exist
    local why=
    for f in "$@"; do ls $f >/dev/null 2>&1 && why="$why $f is there"; done
    result "$why" "no file left: $*"
}

want 0 'Usage: stagediff COMMAND' '' "$program"
want 0 'preprocess' '' "$program" --help
want 0 '^stagediff [0-9]' '' "$program" --version
want 2 '' 'did you mean tokenize' "$program" tokenise
want 2 '' 'unknown command' "$program" ''
for command in info tokenize detokenize preprocess generate harvest encode train diff report run; do
    want 0 "Usage: stagediff $command" '' "$program" $command --help
    want 2 '' 'unknown option --nonsense' "$program" $command --nonsense
    want 2 '' 'nearest valid value is 0' "$program" $command --threads -1
done

want 0 '^\{"ids":\[[0-9,]*\],"pieces":\["<\|begin_of_text\|>","The"' '' "$program" tokenize --model "$golden/llama3" --text 'The red cube'
want 0 '^\{"ids":\[\],"pieces":\[\]\}$' '' "$program" tokenize --model "$golden/llama3" --text '' --no-special
want 2 '' 'give either --text' "$program" tokenize --model "$golden/llama3"
want 2 '' 'not both' "$program" tokenize --model "$golden/llama3" --text a --in b
want 2 '' '--model is missing' "$program" tokenize --text a
want 2 '' 'no such folder' "$program" tokenize --model nowhere --text a
want 2 '' 'not UTF-8' "$program" tokenize --model "$golden/llama3" --text $'a\xff'
want 2 '' 'No space left' bash -c "'$program' tokenize --model '$golden/llama3' --text a >/dev/full"
want 2 '' 'Bad file descriptor|results cannot' bash -c "'$program' tokenize --model '$golden/llama3' --text a >&-"
printf '{"text":"The red"}\n\n{"text":"a\\u0000b","more":1}\n' >in.jsonl
want 0 '' '' "$program" tokenize --model "$golden/llama3" --in in.jsonl --out out.jsonl
want 0 '^2$' '' bash -c 'grep -cE "^\{\"ids\":\[[0-9,]+\]\}$" out.jsonl'
want 0 '^\{"ids"' '' "$program" tokenize --model "$golden/llama3" --in in.jsonl --out /dev/stdout
want 2 '' 'No space left' "$program" tokenize --model "$golden/llama3" --in in.jsonl --out /dev/full
want 0 '' '' test -c /dev/full
printf '{"text":"fine"}\n{"text":5}\n' >bad.jsonl
want 2 '' "bad.jsonl:2: the key 'text'" "$program" tokenize --model "$golden/llama3" --in bad.jsonl --out never.jsonl
gone 'never.jsonl*'
want 2 '' 'folder no does not exist' "$program" tokenize --model "$golden/llama3" --in in.jsonl --out no/out.jsonl
want 2 '' 'is a folder' "$program" tokenize --model "$golden/llama3" --in in.jsonl --out .

ids=$("$program" tokenize --model "$golden/llama3" --text '  Größe 😀 x' | sed 's/.*"ids":\[\([^]]*\)\].*/\1/')
want 0 '^<\|begin_of_text\|>  Größe 😀 x$' '' "$program" detokenize --model "$golden/llama3" --ids "$ids"
want 0 '^$' '' "$program" detokenize --model "$golden/llama3" --ids ''
want 2 '' '99999 is no token' "$program" detokenize --model "$golden/llama3" --ids 1,99999
want 2 '' '-200 is no token' "$program" detokenize --model "$golden/llama3" --ids -200
want 2 '' 'whole number' "$program" detokenize --model "$golden/llama3" --ids 1,,2
want 2 '' 'separated by commas' "$program" detokenize --model "$golden/llama3" --ids 1,2,

mkdir clip && printf '{"size":{"shortest_edge":16},"crop_size":{"height":16,"width":16},"image_processor_type":"CLIPImageProcessor"}' >clip/preprocessor_config.json
want 0 '' '' "$program" preprocess --model clip --image "$golden/pictures/rgb_33x17.png" --image "$golden/pictures/cmyk.jpg" --out pixels.safetensors
want 0 'pixel_values/1.*\[3,16,16\]' '' head -c 400 pixels.safetensors
head -c 900 "$golden/pictures/progressive.jpg" >cut.jpg
want 2 '' 'cut.jpg: the JPEG picture is truncated' "$program" preprocess --model clip --image "$golden/pictures/rgb_33x17.png" --image cut.jpg --out never.safetensors
want 2 '' '--image is missing' "$program" preprocess --model clip --out never.safetensors
gone 'never.safetensors*'

# a signal in the middle: its status, and no file
yes '{"text":"The red cube is left of the blue sphere."}' | head -400000 >long.jsonl
for name in INT TERM; do
    (trap - INT; exec "$program" tokenize --model "$golden/llama3" --in long.jsonl --out late.jsonl) &
    child=$!
    for _ in $(seq 200); do ls late.jsonl.tmp.* >/dev/null 2>&1 && break; sleep 0.02; done
    kill -$name $child
    wait $child
    status=$?
    [ $name = INT ] && expected=130 || expected=143
    result "$([ $status = $expected ] || echo "status $status, expected $expected")" "SIG$name"
    gone 'late.jsonl*'
done
echo "$passed passed, $failed failed"
[ $failed = 0 ]
