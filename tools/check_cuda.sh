#!/bin/sh
# SPDX-License-Identifier: MIT
# What only a machine with a GPU can show, with binaries built before (anywhere):
# check_cuda.sh BUILD OUT [PROCESSES]. Writes its logs and the timings to OUT and prints a summary.
# Correctness: the conformance table, guard pages and non-finite tokens, random problems from many
# processes at once (they share the disk cache), compute-sanitizer. Then the seed's benchmark.
set -u
build=$1
out=$2
processes=${3:-12}
mkdir -p "$out"
export VECINA_CACHE_DIR="${VECINA_CACHE_DIR:-$out/cache}"
vecina=$build/vecina
failures=0

# report LABEL LOG PATTERN: the line that tells; failed if there is none.
report() {
  line=$(grep -h "$3" "$2" | tail -n 1)
  [ -n "$line" ] || { line="FAILED, see $2"; failures=$((failures + 1)); tail -n 5 "$2"; }
  printf '%-28s %s\n' "$1" "$line"
}

nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
$vecina info > "$out/info.txt" 2>&1
$vecina bench --backends cuda,cpu --json "$out/bench.json" > "$out/bench.txt" 2>&1
report "bench" "$out/bench.txt" '|'

"$build"/tests/conformance_test --gtest_filter='*cuda*' --gtest_brief=1 \
  > "$out/conformance.txt" 2>&1
report "conformance, guard pages" "$out/conformance.txt" 'PASSED'
"$build"/tests/reference_test --gtest_filter='*Golden*:*Merge*' --gtest_brief=1 > "$out/golden.txt" 2>&1
report "golden, merge" "$out/golden.txt" 'PASSED'

i=0
while [ $i -lt "$processes" ]; do
  (
    $vecina check --backend cuda --cases "${CASES:-250}" --seed $((100000 + 1000 * i)) \
      > "$out/check$i.txt" 2>&1
    $vecina check --backend cuda --backward --cases "${CASES:-250}" \
      --seed $((200000 + 1000 * i)) > "$out/backward$i.txt" 2>&1
  ) &
  i=$((i + 1))
done
wait
i=0
while [ $i -lt "$processes" ]; do
  report "random $i" "$out/check$i.txt" 'failures 0'
  report "random backward $i" "$out/backward$i.txt" 'failures 0'
  i=$((i + 1))
done

if command -v compute-sanitizer > /dev/null; then
  for tool in memcheck racecheck initcheck synccheck; do
    for pass in "" --backward; do
      compute-sanitizer --tool $tool $vecina check --backend cuda $pass \
        --cases "${SANITIZED:-40}" --seed 7000 > "$out/$tool$pass.txt" 2>&1
      report "$tool $pass" "$out/$tool$pass.txt" 'SUMMARY: 0 \(errors\|hazards\)'
    done
  done
fi
[ $failures = 0 ] && echo "all passed" || { echo "$failures failed"; exit 1; }
