#!/bin/sh
# SPDX-License-Identifier: MIT
# Builds the fuzzers with clang and runs each for some seconds, all at once, from the corpus in
# tests/fuzz/corpus. New inputs stay in build-fuzz/corpus; an input that fails is kept beside it.
# Usage: fuzz.sh SECONDS
set -eu
cd "$(dirname "$0")/.."
seconds=${1:-20}
fuzzers="fuzz_problem_line fuzz_npy"

# shellcheck disable=SC2086  # a list of names
cmake -S . -B build-fuzz -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_C_COMPILER=clang \
  -DCMAKE_CXX_COMPILER=clang++ -DVECINA_BUILD_FUZZERS=ON -DVECINA_BUILD_TESTS=ON &&
  ninja -C build-fuzz $fuzzers

pids=
for fuzzer in $fuzzers; do
  binary=$(find build-fuzz -type f -name "$fuzzer" | head -n 1)
  mkdir -p "build-fuzz/corpus/$fuzzer"
  "$binary" -max_total_time="$seconds" -print_final_stats=1 -timeout=10 \
    -artifact_prefix="build-fuzz/$fuzzer-" "build-fuzz/corpus/$fuzzer" \
    "tests/fuzz/corpus/${fuzzer#fuzz_}" >"build-fuzz/$fuzzer.log" 2>&1 &
  pids="$pids $!"
done
status=0
for pid in $pids; do wait "$pid" || status=1; done
for fuzzer in $fuzzers; do
  echo "$fuzzer: $(sed -n 's/stat::number_of_executed_units: //p' "build-fuzz/$fuzzer.log") inputs"
  [ $status = 0 ] || tail -n 30 "build-fuzz/$fuzzer.log"
done
exit $status
