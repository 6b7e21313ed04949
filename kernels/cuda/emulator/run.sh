#!/bin/sh
# Compiles the kernels' own sources as C++ and runs the suite: no GPU, no CUDA, about two minutes.
set -eu
cd "$(dirname "$0")"
out=${TMPDIR:-/tmp}/cuda-emulator.$$
trap 'rm -f "$out"' EXIT
fma=
if grep -qw fma /proc/cpuinfo 2>/dev/null; then fma=-mfma; fi
# As devices from 9.0 on compute, and as those below.
for groups in 1 0; do
    ${CXX:-g++} -std=c++17 -O2 -g -Wall -Wextra -Werror -Wno-unknown-pragmas -ffp-contract=off $fma -DWARPGROUPS=$groups -I.. \
        main.cpp -o "$out" -lpthread
    "$out"
done
