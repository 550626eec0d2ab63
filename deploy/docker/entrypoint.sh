#!/bin/sh
# What a container runs: `shoal serve` with the arguments it is given, on every address and port $PORT.
# A command by name (shoal, ray, serve, python, sh, bash) runs as it is.
set -eu

needed_mb=256 # Ray's object store, and what ranks of a node and NCCL exchange

# Whether a command begins a Ray here; of `shoal serve` its own reading of flags and file says so, and what it
# cannot read it refuses itself.
begins_ray() {
    case "$1 ${2:-}: $* " in
        *" --help "* | *" --print-config "* | *" --explain "*) return 1 ;;
        "ray start:"* | "serve run:"*) return 0 ;;
        "shoal serve:"*) "$@" --print-config 2>/dev/null | grep -q '^local: false' ;;
        *) return 1 ;;
    esac
}

check_shared_memory() {
    found_mb=$(df -Pk /dev/shm 2>/dev/null | awk 'NR == 2 { print int($2 / 1024) }')
    if [ "${found_mb:-0}" -lt $needed_mb ] && begins_ray "$@"; then
        echo "shoal: /dev/shm has ${found_mb:-0} MB; $needed_mb MB are needed. Give the container more:" >&2
        echo "       docker run --shm-size=1g ...   (Compose: shm_size; Kubernetes: an emptyDir of medium Memory at /dev/shm)" >&2
        exit 2
    fi
}

check_cache() {
    folder=$(dirname "${HF_HOME:-/weights/huggingface}")
    if [ ! -w "$folder" ]; then
        echo "shoal: $folder cannot be written by user $(id -u), so that models of a hub cannot be kept:" >&2
        echo "       use a volume, or let this user own the folder that is mounted there: chown 1000 FOLDER" >&2
    fi
}

case ${1:-} in
    shoal | ray | serve | python | sh | bash) ;;
    *)
        # What is given later wins, so that --host and --port may be given all the same.
        set -- shoal serve --host 0.0.0.0 --port "${PORT:-8000}" "$@"
        check_cache
        ;;
esac
check_shared_memory "$@"
exec "$@"
