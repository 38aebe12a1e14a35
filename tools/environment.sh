# environment FOLDER LIST: prints an interpreter under build/real/FOLDER that has the packages of tools/LIST, installed when they are not there yet or the
# list has changed. For other scripts to read in; needs $here, this folder.
environment() {
    folder=build/real/$1 list=$here/$2
    if ! cmp -s "$list" "$folder/$2"; then
        echo "installing the packages of tools/$2 into $folder: minutes and, with PyTorch, 6 GB; once" >&2
        [ -t 2 ] || quiet=-q
        mkdir -p build/real && { [ -x "$folder/bin/python" ] || python3 -m venv "$folder"; } &&
            "$folder/bin/python" -m pip install ${quiet:-} --disable-pip-version-check -r "$list" >&2 && cp "$list" "$folder/$2" || {
            echo "$folder: could not be made (see above); it needs python3-venv and a package index. The same command goes on; or set PYTHON" >&2
            return 1
        }
    fi
    echo "$folder/bin/python"
}
