#!/bin/sh
# lanes.sh PYTHON: every test, in two lanes side by side. Those that run Ray wait much of their time,
# for processes and for answers; all others compute on one thread. The first lane's output comes last.
set -u
cd "$(dirname "$0")/.."
said=$(mktemp)
ray="tests/cluster/fleet tests/cluster/ranks tests/cluster/nodes tests/cluster/commands"
"$1" -m pytest $ray -p no:cacheprovider >"$said" 2>&1 &
lane=$!
trap 'kill -INT $lane 2>/dev/null; wait $lane; cat "$said"; rm -f "$said"; exit 130' INT TERM
"$1" -m pytest $(printf -- '--ignore=%s ' $ray)
status=$?
wait $lane || status=$?
cat "$said"
rm -f "$said"
exit "$status"
