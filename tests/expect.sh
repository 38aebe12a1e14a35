# expect.sh - sourced by the test scripts of commands: a scratch folder $dir, counts $passed and $failed, and one check.
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
