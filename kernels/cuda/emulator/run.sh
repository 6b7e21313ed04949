#!/bin/sh
# Compiles the kernels' own sources as C++ and runs the suite: no GPU, no CUDA, under a minute.
set -eu
cd "$(dirname "$0")"
out=${TMPDIR:-/tmp}/cuda-emulator.$$
trap 'rm -f "$out"' EXIT
fma=
if grep -qw fma /proc/cpuinfo 2>/dev/null; then fma=-mfma; fi
${CXX:-g++} -std=c++17 -O2 -g -Wall -Wextra -Werror -Wno-unknown-pragmas -ffp-contract=off $fma -I.. main.cpp -o "$out" -lpthread
"$out"
