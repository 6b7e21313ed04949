#!/bin/sh
# Compiles the kernels' own sources as C++ and runs the suite: no GPU, no CUDA, two cores for about a minute.
set -eu
cd "$(dirname "$0")"
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
fma=
if grep -qw fma /proc/cpuinfo 2>/dev/null; then fma=-mfma; fi

run() {
    ${CXX:-g++} -std=c++17 -O2 -Wall -Wextra -Werror -Wno-unknown-pragmas -ffp-contract=off $fma -DWARPGROUPS="$1" -I.. \
        main.cpp -o "$out/$1" -lpthread && "$out/$1"
}

# As devices from 9.0 on compute, and meanwhile as those below.
run 0 >"$out/log" 2>&1 &
older=$!
status=0
run 1 || status=1
wait "$older" || status=1
cat "$out/log"
exit "$status"
