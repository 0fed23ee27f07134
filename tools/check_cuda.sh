#!/bin/sh
# SPDX-License-Identifier: MIT
# What only a machine with a GPU can show, with binaries built before (anywhere):
# check_cuda.sh BUILD OUT [PROCESSES]. Writes its logs and the timings to OUT and prints a summary.
# The seed's benchmark, then correctness: the conformance table, guard pages and non-finite tokens,
# merging, lengths, the split form, problems for the kernels that random ones seldom or never reach
# (large_problems.txt, lengths_problems.txt and halo_problems.txt in PROBLEMS, else in tests/),
# random problems from many processes at once (they share the disk cache), compute-sanitizer.
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

# run_tests LABEL PROGRAM FILTER: a program's tests, dealt to the processes.
run_tests() {
  i=0
  while [ $i -lt "$processes" ]; do
    (
      GTEST_TOTAL_SHARDS=$processes GTEST_SHARD_INDEX=$i "$build/tests/$2" --gtest_brief=1 \
        --gtest_filter="$3" > "$out/$1$i.txt" 2>&1 || echo FAILED >> "$out/$1$i.txt"
    ) &
    i=$((i + 1))
  done
  wait
  cat "$out/$1"[0-9]*.txt > "$out/$1.txt"
  count=$(awk '/PASSED/ { sum += $4 } END { print sum + 0 }' "$out/$1.txt")
  echo "$count tests passed" >> "$out/$1.txt"
  [ "$count" -gt 0 ] && ! grep -q FAILED "$out/$1.txt"
  report "$1" $? "$out/$1.txt" 'tests passed'
}
run_tests conformance conformance_test '*cuda*'
run_tests golden reference_test '*Golden*:*Merge*'
run_tests lengths lengths_test '*cuda*'
run_tests split split_test '*cuda*-*Random*'

i=0
while [ $i -lt "$processes" ]; do
  (
    $vecina check --backend cuda --cases "${CASES:-250}" --seed $((100000 + 1000 * i)) \
      > "$out/check$i.txt" 2>&1
    echo $? > "$out/check$i.status"
    $vecina check --backend cuda --backward --cases "${CASES:-250}" \
      --seed $((200000 + 1000 * i)) > "$out/backward$i.txt" 2>&1
    echo $? > "$out/backward$i.status"
    $vecina check --backend cuda --split --cases "${CASES:-250}" --seed $((300000 + 1000 * i)) \
      > "$out/split-check$i.txt" 2>&1
    echo $? > "$out/split-check$i.status"
  ) &
  i=$((i + 1))
done
wait
i=0
while [ $i -lt "$processes" ]; do
  report "random $i" "$(cat "$out/check$i.status")" "$out/check$i.txt" 'failures'
  report "random backward $i" "$(cat "$out/backward$i.status")" "$out/backward$i.txt" 'failures'
  report "random split $i" "$(cat "$out/split-check$i.status")" "$out/split-check$i.txt" 'failures'
  i=$((i + 1))
done

# check_each LABEL FILE COMMAND...: COMMAND on each problem of FILE, one process a problem: the first
# to need a kernel compiles it.
check_each() {
  log=$out/$1.txt
  label=$1
  file=$2
  shift 2
  xargs -d '\n' -P "$processes" -I{} sh -c 'line=$1; shift; "$@" --problem "$line" || echo "FAILED $line"' \
    _ {} "$@" < "$file" > "$log" 2>&1
  if grep -q FAILED "$log"; then status=1; else status=0; fi
  report "$label" $status "$log" 'failures'
}
problems=${PROBLEMS:-$(dirname "$0")/../tests}
# Of the case with this seed the tensors are aligned, which the kernels of tensor cores need.
aligned="--seed 13"
check_each large "$problems/large_problems.txt" $vecina check --backend cuda $aligned
check_each large--backward "$problems/large_problems.txt" $vecina check --backend cuda $aligned --backward
VECINA_CUDA_TARGET=80 check_each large-without-hopper "$problems/large_problems.txt" \
  $vecina check --backend cuda $aligned
check_each lengths "$problems/lengths_problems.txt" $vecina check --backend cuda $aligned
check_each halo "$problems/halo_problems.txt" $vecina check --backend cuda $aligned
check_each halo--backward "$problems/halo_problems.txt" $vecina check --backend cuda $aligned --backward

if command -v compute-sanitizer > /dev/null; then
  head -n 8 "$problems/halo_problems.txt" > "$out/sanitized_problems.txt"
  tools="memcheck racecheck initcheck synccheck"
  for tool in $tools; do
    sanitizer="compute-sanitizer --error-exitcode 1 --tool $tool"
    for pass in "" --backward; do
      (
        $sanitizer $vecina check --backend cuda $pass --cases "${SANITIZED:-40}" --seed 7000 \
          > "$out/$tool$pass.txt" 2>&1
        echo $? > "$out/$tool$pass.status"
      ) &
      check_each "$tool-halo$pass" "$out/sanitized_problems.txt" \
        $sanitizer $vecina check --backend cuda $aligned $pass
    done
  done
  wait
  for tool in $tools; do
    for pass in "" --backward; do
      report "$tool $pass" "$(cat "$out/$tool$pass.status")" "$out/$tool$pass.txt" 'SUMMARY'
    done
  done
fi
[ $failures = 0 ] && echo "all passed" || { echo "$failures failed"; exit 1; }
