#!/bin/sh
# Makes .venv and installs shoal into it, in place: `deploy/setup.sh [EXTRA...]`.
#
#   PYTHON            the interpreter to use (default: the first of python3, python3.13, ... in range)
#   TORCH_INDEX_URL   the package index that torch is taken from (default: pip's own)
#
# What is missing is named with the command that brings it. pip's whole output is in .venv/setup.log.
set -eu
cd "$(dirname "$0")/.."
venv=.venv
log=$venv/setup.log
tried="3.11 to 3.13"

say() { printf 'shoal: %s\n' "$*" >&2; }

stop() {
    say "$1"
    shift
    for line in "$@"; do printf '       %s\n' "$line" >&2; done
    exit 1
}

# "3.12" of an interpreter; nothing where it does not run.
version_of() {
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true
}

too_old() {
    case $1 in 2.* | 3.[0-9] | 3.10) return 0 ;; esac
    return 1
}

install_command() {
    if command -v apt-get >/dev/null 2>&1; then
        echo "sudo apt-get install $1"
    elif command -v dnf >/dev/null 2>&1; then
        echo "sudo dnf install $2"
    elif command -v brew >/dev/null 2>&1; then
        echo "brew install python@3.12"
    else
        echo "see https://www.python.org/downloads/"
    fi
}

# Sets $python, or stops.
find_python() {
    if [ -n "${PYTHON:-}" ]; then
        version=$(version_of "$PYTHON")
        [ -n "$version" ] || stop "PYTHON=$PYTHON does not run."
        ! too_old "$version" || stop "PYTHON=$PYTHON is Python $version; shoal needs $tried."
        python=$PYTHON
        return
    fi
    found=
    for python in python3 python3.13 python3.12 python3.11 python; do
        version=$(version_of "$python")
        case $version in
            3.11 | 3.12 | 3.13) return ;;
            ?*) found="${found:+$found, }$python is $version" newest=$python ;;
        esac
    done
    [ -n "$found" ] || stop "no Python was found; shoal needs $tried. To bring it:" \
        "$(install_command 'python3 python3-venv' python3)"
    too_old "$version" || stop "Python is out of range: $found; shoal was tried with $tried. Try it anyway:" \
        "make serve PYTHON=$newest"
    stop "Python is out of range: $found; shoal needs $tried. To bring it:" \
        "$(install_command 'python3.12 python3.12-venv' python3.12)" \
        "make serve PYTHON=python3.12"
}

make_venv() {
    if [ -x $venv/bin/python ]; then
        version=$(version_of $venv/bin/python)
        if [ -n "$version" ] && ! too_old "$version" && $venv/bin/python -m pip --version >/dev/null 2>&1; then
            return
        fi
        say "$venv does not work any more (its Python has moved or changed): making it anew"
        rm -rf $venv
    fi
    find_python
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
        stop "Python $version ($python) has no venv module. To bring it:" \
            "$(install_command "python$version-venv" "python$version")"
    say "making $venv with Python $version"
    "$python" -m venv $venv || stop "python -m venv failed; the reason stands above."
    mkdir -p $venv/typing
    ln -sfn ../.. $venv/typing/shoal
}

has_gpu() { command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU; }

# pip install with one line a large download instead of hundreds; stops with pip's last words.
install() {
    rm -f $venv/failed
    { $venv/bin/python -m pip install --disable-pip-version-check "$@" 2>&1 || : >$venv/failed; } |
        while IFS= read -r line; do
            printf '%s\n' "$line" >>$log
            case $line in
                *"Downloading "*" MB)"* | *"Downloading "*" GB)"*)
                    printf '       %s\n' "${line#"${line%%[! ]*}"}" >&2 ;;
            esac
        done
    [ -e $venv/failed ] || return 0
    grep -E '^ *(ERROR|error)' $log | tail -n 5 >&2
    stop "installing failed; all that pip said is in $log." \
        "No network: check the proxy (HTTPS_PROXY) or the index (PIP_INDEX_URL, TORCH_INDEX_URL)." \
        "No matching distribution: Python $(version_of $venv/bin/python) may have no such build; shoal was tried with $tried." \
        "No space: torch and Ray take 1.8 GB; df -h . and TMPDIR." \
        "Then run the same command again: what was fetched is kept."
}

install_torch() {
    if ! $venv/bin/python -c 'import torch' 2>/dev/null; then
        advise_small_torch
        say "installing torch (once; this is the largest part)"
    fi
    install -c constraints.txt ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} torch
}

advise_small_torch() {
    if [ -z "${TORCH_INDEX_URL:-}" ] && [ "$(uname -s)" = Linux ] && ! has_gpu; then
        say "no NVIDIA GPU here: should pip begin to fetch gigabytes of CUDA, the build for CPUs is a tenth of it:"
        printf '       TORCH_INDEX_URL=ADDRESS make serve    # the --index-url that https://pytorch.org/get-started/locally names for CPU\n' >&2
    fi
}

warn_cpu_torch() {
    has_gpu || return 0
    $venv/bin/python -c 'import sys, torch; sys.exit(torch.version.cuda is not None)' 2>/dev/null || return 0
    say "this machine has an NVIDIA GPU, but the torch in $venv is a build for CPUs: the GPU would stay idle. For one that uses it:"
    printf '       make clean && make serve TORCH_INDEX_URL=ADDRESS    # the --index-url that https://pytorch.org/get-started/locally names for CUDA\n' >&2
}

# The native CPU ops: without a compiler torch's serve, so nothing stops for want of one.
advise_compiler() {
    [ "$(uname -s) $(uname -m)" = "Linux x86_64" ] || return 0
    for command in ${CXX:+"${CXX%% *}"} c++ g++ clang++; do
        ! command -v "$command" >/dev/null 2>&1 || return 0
    done
    say "no C++ compiler here: torch's ops serve CPUs, slower than shoal's own. To bring those:"
    printf '       %s    # then the same command again\n' "$(install_command g++ gcc-c++)" >&2
}

warn_native() {
    reason=$($venv/bin/python -c 'from shoal.kernels.cpu import bindings as found; print(found.absence() or "")' 2>>$log) || return 0
    [ -z "$reason" ] || say "torch's ops serve CPUs, slower than shoal's own: $reason"
}

make_venv
: >$log
advise_compiler
install_torch
warn_cpu_torch
extras=$(printf '%s,' "$@")
say "installing shoal and what it needs (pip's words: $log)"
install -c constraints.txt -e ".${1:+[${extras%,}]}"
warn_native
say "installed"
