#!/bin/sh
# Makes the clients that shoal is tried with, each in an environment of its own under
# .venv/clients: `deploy/clients.sh [NAME...]`, all of them where none is named.
#
#   PYTHON            the interpreter to use (default: .venv's, else python3)
#   TORCH_INDEX_URL   the package index that torch is taken from (default: pip's own)
#
# What each is made of stands in tests/cluster/clients/needs; one made from the same is left as it is.
set -eu
cd "$(dirname "$0")/.."
needs=tests/cluster/clients/needs
made=.venv/clients

say() { printf 'shoal: %s\n' "$*" >&2; }

python_names() { for file in $needs/*.txt; do basename "$file" .txt; done; }

names() { python_names; echo openai-node; }

# Keeps pip's output for the case that it fails.
quietly() {
    "$@" >>"$log" 2>&1 || {
        tail -n 8 "$log" >&2
        say "making $name failed; all that was said is in $log"
        exit 1
    }
}

make_python() {
    python=${PYTHON:-python3}
    [ -n "${PYTHON:-}" ] || [ ! -x .venv/bin/python ] || python=.venv/bin/python
    quietly "$python" -m venv --clear "$made/$name"
    torch=$(sed -n 's/^\(torch==.*\)/\1/p' "$1")
    if [ -n "$torch" ]; then
        quietly "$made/$name/bin/python" -m pip install --disable-pip-version-check \
            ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} "$torch"
    fi
    quietly "$made/$name/bin/python" -m pip install --disable-pip-version-check -r "$1"
    [ "$name" != openai-tests ] || unpack_openai "$(grep '^openai==' "$1")"
}

# The tests of openai come with its source archive alone.
unpack_openai() {
    quietly "$made/$name/bin/python" -m pip download --disable-pip-version-check --no-deps \
        --no-binary openai --dest "$made/$name" "$1"
    mkdir "$made/$name/source"
    quietly tar -xzf "$made/$name"/openai-*.tar.gz -C "$made/$name/source" --strip-components 1
}

make_node() {
    rm -rf "${made:?}/$name"
    mkdir -p "$made/$name"
    cp "$1" "$made/$name/package.json"
    quietly npm install --prefix "$made/$name" --no-audit --no-fund
}

for name in ${*:-$(names)}; do
    file=$needs/$name.txt
    [ "$name" != openai-node ] || file=$needs/openai-node.json
    if [ ! -f "$file" ]; then
        say "no client $name; there are: $(names | tr '\n' ' ')"
        exit 2
    fi
    if cmp -s "$file" "$made/$name/made-from"; then
        continue
    fi
    if [ "$name" = openai-node ] && ! command -v npm >/dev/null 2>&1; then
        say "openai-node needs Node.js and npm, which are not here: left out"
        continue
    fi
    say "making $made/$name"
    mkdir -p $made
    log=$made/$name.log
    : >"$log"
    if [ "$name" = openai-node ]; then make_node "$file"; else make_python "$file"; fi
    cp "$file" "$made/$name/made-from"
done
