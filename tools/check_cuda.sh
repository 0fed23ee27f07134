#!/bin/sh
# SPDX-License-Identifier: MIT
# What only a machine with a GPU can show, with binaries built before (anywhere):
# check_cuda.sh BUILD OUT [PROCESSES]. Writes its logs and the timings to OUT and prints a summary.
# The seed's benchmark, then correctness: the conformance table, guard pages and non-finite tokens,
# problems large enough for the kernels that small ones never reach (tests/large_problems.txt, or
# LARGE), random problems from many processes at once (they share the disk cache), compute-sanitizer.
set -u
build=$1
out=$2
processes=${3:-12}
mkdir -p "$out"
export VECINA_CACHE_DIR="${VECINA_CACHE_DIR:-$out/cache}"
vecina=$build/vecina
failures=0

# report LABEL STATUS LOG PATTERN: the line that tells. gtest prints "PASSED" beside failures, so the
# exit status decides.
report() {
  if [ "$2" = 0 ]; then
    printf '%-28s %s\n' "$1" "$(grep -h "$4" "$3" | tail -n 1)"
  else
    printf '%-28s %s\n' "$1" "FAILED, see $3"
    failures=$((failures + 1))
    tail -n 5 "$3"
  fi
}

nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
$vecina info > "$out/info.txt" 2>&1
$vecina bench --backends cuda,cpu --json "$out/bench.json" > "$out/bench.txt" 2>&1
report "bench" $? "$out/bench.txt" '|'

"$build"/tests/conformance_test --gtest_filter='*cuda*' --gtest_brief=1 \
  > "$out/conformance.txt" 2>&1
report "conformance, guard pages" $? "$out/conformance.txt" 'PASSED'
"$build"/tests/reference_test --gtest_filter='*Golden*:*Merge*' --gtest_brief=1 > "$out/golden.txt" 2>&1
report "golden, merge" $? "$out/golden.txt" 'PASSED'

i=0
while [ $i -lt "$processes" ]; do
  (
    $vecina check --backend cuda --cases "${CASES:-250}" --seed $((100000 + 1000 * i)) \
      > "$out/check$i.txt" 2>&1
    echo $? > "$out/check$i.status"
    $vecina check --backend cuda --backward --cases "${CASES:-250}" \
      --seed $((200000 + 1000 * i)) > "$out/backward$i.txt" 2>&1
    echo $? > "$out/backward$i.status"
  ) &
  i=$((i + 1))
done
wait
i=0
while [ $i -lt "$processes" ]; do
  report "random $i" "$(cat "$out/check$i.status")" "$out/check$i.txt" 'failures'
  report "random backward $i" "$(cat "$out/backward$i.status")" "$out/backward$i.txt" 'failures'
  i=$((i + 1))
done

# One process a problem: the first to need a kernel compiles it.
export vecina
xargs -d '\n' -P "$processes" -I{} sh -c 'for pass in "" --backward; do
  $vecina check --backend cuda $pass --problem "$1" || echo "FAILED $pass $1"; done' \
  _ {} < "${LARGE:-$(dirname "$0")/../tests/large_problems.txt}" > "$out/large.txt" 2>&1
if grep -q FAILED "$out/large.txt"; then large_status=1; else large_status=0; fi
report "large problems" $large_status "$out/large.txt" 'failures'

if command -v compute-sanitizer > /dev/null; then
  for tool in memcheck racecheck initcheck synccheck; do
    for pass in "" --backward; do
      compute-sanitizer --error-exitcode 1 --tool $tool $vecina check --backend cuda $pass \
        --cases "${SANITIZED:-40}" --seed 7000 > "$out/$tool$pass.txt" 2>&1
      report "$tool $pass" $? "$out/$tool$pass.txt" 'SUMMARY'
    done
  done
fi
[ $failures = 0 ] && echo "all passed" || { echo "$failures failed"; exit 1; }
