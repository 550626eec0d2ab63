#!/bin/sh
# Runs `ray start --block` with the arguments given, in the background, and starts it again whenever it ends:
# when its GCS died, or the node was cut off and gave up. One at a time on a machine.
#   keep-ray.sh start ARGUMENTS OF ray start...
#   keep-ray.sh stop
# Ray's variables come from ray.env beside this script and, for --head, ray-head.env. Words go to keep-ray.log there.
set -eu
folder=$(cd "$(dirname "$0")" && pwd)
keeper=$folder/keep-ray.pid
delay=${KEEP_RAY_DELAY:-2}

running() { grep -qv ') Z ' "/proc/$1/stat" 2>/dev/null; }

# The file outlives a reboot, after which another process may have the number.
is_keeper() { tr '\0' ' ' 2>/dev/null <"/proc/$1/cmdline" | grep -Eq 'keep-ray\.sh (start|keep) '; }

stop() {
    [ -f "$keeper" ] || return 0
    pid=$(cat "$keeper")
    rm -f "$keeper"
    is_keeper "$pid" || return 0
    kill -TERM "$pid" 2>/dev/null || return 0
    waited=0
    while running "$pid" && [ $waited -lt 300 ]; do
        sleep 0.1
        waited=$((waited + 1))
    done
    # The keeper leads a session of its own: this ends what it left.
    kill -KILL -- "-$pid" 2>/dev/null || true
}

keep() {
    set -a
    . "$folder/ray.env"
    case " $* " in *" --head "*)
        . "$folder/ray-head.env"
        # Without rights to that folder, this user's own will do.
        mkdir -p "$RAY_gcs_storage_path" 2>/dev/null || RAY_gcs_storage_path=$folder/gcs
        mkdir -p "$RAY_gcs_storage_path"
        ;;
    esac
    set +a
    child=
    trap 'trap "" TERM; [ -z "$child" ] || { kill "$child" 2>/dev/null; wait "$child"; }; exit 0' TERM
    while :; do
        code=0
        ray start --block "$@" &
        child=$!
        wait "$child" || code=$?
        echo "keep-ray: $(date -u +%FT%TZ) ray start ended with code $code; again in $delay s"
        sleep "$delay"
    done
}

case ${1:-} in
    start)
        shift
        stop
        setsid "$0" keep "$@" >>"$folder/keep-ray.log" 2>&1 </dev/null &
        echo $! >"$keeper"
        ;;
    keep)
        shift
        keep "$@"
        ;;
    stop) stop ;;
    *)
        sed -n '2,6s/^# //p' "$0" >&2
        exit 2
        ;;
esac
