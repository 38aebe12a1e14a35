# environment FOLDER PIP_ARGUMENTS...: prints an interpreter under build/real/FOLDER that has the packages, made on first use. For other scripts to read in.
environment() {
    folder=build/real/$1
    shift
    if [ ! -e "$folder/ready" ]; then
        mkdir -p build/real && python3 -m venv "$folder" && "$folder/bin/python" -m pip install -q "$@" >&2 && touch "$folder/ready" || exit 1
    fi
    echo "$folder/bin/python"
}
