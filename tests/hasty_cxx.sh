#!/bin/sh
# A C++ compiler that does not optimise: for tests of what is built, not of how fast it runs.
for word; do
    shift
    [ "$word" = -O3 ] || set -- "$@" "$word"
done
exec c++ "$@"
