#!/bin/sh
# What a container runs: `shoal serve` with the arguments it is given, on every address and port $PORT.
# A command by name (shoal, ray, serve, python, sh, bash) runs as it is.
set -eu

needed_mb=256 # Ray's object store, and what ranks of a node and NCCL exchange

case ${1:-} in
    shoal | ray | serve | python | sh | bash) command=$1 ;;
    *) command= ;;
esac

check_shared_memory() {
    found_mb=$(df -Pk /dev/shm 2>/dev/null | awk 'NR == 2 { print int($2 / 1024) }')
    if [ "${found_mb:-0}" -lt $needed_mb ]; then
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

case " $* " in
    *" --local "* | *" --local=true "* | *" --help "* | *" --version "*) ;;
    *) case $command in sh | bash | python) ;; *) check_shared_memory ;; esac ;;
esac

if [ -n "$command" ]; then
    exec "$@"
fi
check_cache
# What is given later wins, so that --host and --port may be given all the same.
exec shoal serve --host 0.0.0.0 --port "${PORT:-8000}" "$@"
