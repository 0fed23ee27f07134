#!/bin/sh
# SPDX-License-Identifier: MIT
# What only a machine with a GPU can show, with binaries built before (anywhere):
# check_cuda.sh BUILD OUT [PROCESSES]. Writes its logs and the timings to OUT and prints a summary.
# SECTIONS names parts of it; all of them, in order:
#   bench       the seed's benchmark by the GPU's clock, what features and calls cost, first calls
#   tests       streams, graphs, threads, errors, memory around tensors, tensors of more than 2^31
#               elements (cuda_device_test); the conformance table, guard pages, non-finite tokens,
#               merging, lengths, the split form
#   fixed       RANDOM_PROBLEMS (20000) random problems on at most 200 kernels that were compiled before
#   random      random problems of any kind from many processes at once (they share the disk cache)
#   large       problems for kernels that random ones seldom or never reach (large_problems.txt,
#               lengths_problems.txt, small_problems.txt, halo_problems.txt and e4m3_problems.txt
#               in PROBLEMS, else in tests/)
#   sanitizers  compute-sanitizer on every row of the table, on some of halo_problems.txt and on columns
#               in parts
#   python      test_cuda.py in PROBLEMS/python and the benchmark from PyTorch, with PYTHON (python3),
#               which has vecina, torch and pytest
set -u
build=$1
out=$2
processes=${3:-12}
sections=${SECTIONS:-bench tests fixed random large sanitizers python}
problems=${PROBLEMS:-$(dirname "$0")/../tests}
# Of the case with this seed the tensors are aligned, which the kernels of tensor cores need.
aligned="--seed 13"
mkdir -p "$out"
export VECINA_CACHE_DIR="${VECINA_CACHE_DIR:-$out/cache}"
vecina=$build/vecina
failures=0

begins() {
  case " $sections " in *" $1 "*) ;; *) return 1 ;; esac
  echo "$(date +%T) $1"
}

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

# run_tests LABEL PROGRAM FILTER [PREFIX...]: a program's tests, dealt to the processes, none of which
# goes without: compute-sanitizer calls it an error if a program does nothing on the GPU.
run_tests() {
  label=$1
  program=$2
  filter=$3
  shift 3
  shards=$("$build/tests/$program" --gtest_list_tests --gtest_filter="$filter" | grep -c '^  ')
  [ "$shards" -le "$processes" ] || shards=$processes
  rm -f "$out/$label"[0-9]*.txt
  i=0
  while [ $i -lt "$shards" ]; do
    (
      GTEST_TOTAL_SHARDS=$shards GTEST_SHARD_INDEX=$i "$@" "$build/tests/$program" \
        --gtest_brief=1 --gtest_filter="$filter" > "$out/$label$i.txt" 2>&1 ||
        echo FAILED >> "$out/$label$i.txt"
    ) &
    i=$((i + 1))
  done
  wait
  cat "$out/$label"[0-9]*.txt > "$out/$label.txt"
  count=$(awk '/PASSED/ { sum += $4 } END { print sum + 0 }' "$out/$label.txt")
  echo "$count tests passed" >> "$out/$label.txt"
  [ "$count" -gt 0 ] && ! grep -q FAILED "$out/$label.txt"
  report "$label" $? "$out/$label.txt" 'tests passed'
}

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

# first_call LABEL CACHE: of a new process.
first_call() {
  VECINA_CACHE_DIR=$2 "$build/benchmarks/cuda_benchmark" --first --json "$out/$1.json" \
    > "$out/$1.txt" 2>&1
  report "$1" $? "$out/$1.txt" 'first call'
}

nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
$vecina info > "$out/info.txt" 2>&1

if begins bench; then
  first_call first_call "$out/new_cache"  # ever: NVRTC's own cache would have the kernel later
  for i in 1 2 3; do first_call "first_call_on_disk$i" "$out/new_cache"; done
  $vecina bench --backends cuda,cpu --json "$out/bench.json" > "$out/bench.txt" 2>&1
  report "bench" $? "$out/bench.txt" '|'
  "$build/benchmarks/cuda_benchmark" --json "$out/cuda_benchmark.json" > "$out/cuda_benchmark.txt" 2>&1
  report "cuda_benchmark" $? "$out/cuda_benchmark.txt" 'vecina_forward'
fi

if begins tests; then
  # Two fill the GPU's memory or look how much is free, which other processes would change.
  alone='*CudaLarge*:*AllocateNothing*'
  run_tests device cuda_device_test "-*CudaRandom*:$alone"
  "$build/tests/cuda_device_test" --gtest_filter="$alone" > "$out/alone.txt" 2>&1
  report "device, alone" $? "$out/alone.txt" 'PASSED'
  run_tests conformance conformance_test '*cuda*'
  run_tests golden reference_test '*Golden*:*Merge*'
  run_tests lengths lengths_test '*cuda*'
  run_tests split split_test '*cuda*-*Random*'
fi

if begins fixed; then
  export VECINA_TESTS_RANDOM="${RANDOM_PROBLEMS:-20000}"
  "$build/tests/cuda_device_test" --gtest_filter=CudaRandom.KernelsAreBuiltBefore \
    > "$out/built.txt" 2>&1
  report "kernels built" $? "$out/built.txt" 'kernels of'
  run_tests fixed cuda_device_test '*CudaRandomPart*'
fi

if begins random; then
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
fi

if begins large; then
  check_each large "$problems/large_problems.txt" $vecina check --backend cuda $aligned
  check_each large--backward "$problems/large_problems.txt" $vecina check --backend cuda $aligned \
    --backward
  VECINA_CUDA_TARGET=80 check_each large-without-hopper "$problems/large_problems.txt" \
    $vecina check --backend cuda $aligned
  grep -E ' head_dim(_value)? (1[3-9]|[2-5][0-9])[0-9]( |$)' "$problems/large_problems.txt" \
    > "$out/long_rows.txt"
  for pass in "" --backward; do
    VECINA_CUDA_TARGET=86 check_each "long-rows-little-memory$pass" "$out/long_rows.txt" \
      $vecina check --backend cuda $aligned $pass
  done
  check_each lengths-large "$problems/lengths_problems.txt" $vecina check --backend cuda $aligned
  check_each lengths-large--backward "$problems/lengths_problems.txt" \
    $vecina check --backend cuda $aligned --backward
  VECINA_CUDA_TARGET=80 check_each lengths-large-without-hopper "$problems/lengths_problems.txt" \
    $vecina check --backend cuda $aligned
  check_each small "$problems/small_problems.txt" $vecina check --backend cuda $aligned
  check_each small--backward "$problems/small_problems.txt" $vecina check --backend cuda $aligned \
    --backward
  check_each e4m3 "$problems/e4m3_problems.txt" $vecina check --backend cuda $aligned --cases 2
  check_each halo "$problems/halo_problems.txt" $vecina check --backend cuda $aligned
  check_each halo--backward "$problems/halo_problems.txt" $vecina check --backend cuda $aligned \
    --backward
  VECINA_CUDA_TARGET=80 check_each halo-without-hopper "$problems/halo_problems.txt" \
    $vecina check --backend cuda $aligned
fi

if begins sanitizers && command -v compute-sanitizer > /dev/null; then
  { head -n 8 "$problems/halo_problems.txt"; grep '^1d 500 kernel_size 300 ' "$problems/large_problems.txt"; } \
    > "$out/sanitized_problems.txt"
  for tool in memcheck racecheck initcheck synccheck; do
    sanitizer="compute-sanitizer --error-exitcode 1 --tool $tool"
    # One lane of Hopper's warps arrives at a barrier for all, after a __syncwarp; racecheck takes
    # only what that lane did as ordered. So it looks at the kernels for other GPUs.
    target=
    [ $tool = racecheck ] && target=VECINA_CUDA_TARGET=80
    run_tests "$tool" cuda_device_test '*CudaMemory*:*CudaLayouts*' env VECINA_TESTS_BARE=1 $target \
      $sanitizer
    for pass in "" --backward; do
      check_each "$tool-halo$pass" "$out/sanitized_problems.txt" \
        $sanitizer $vecina check --backend cuda $aligned $pass
    done
  done
fi

if begins python; then
  python=${PYTHON:-python3}
  $python -m pytest -q -p no:cacheprovider "$problems/python/test_cuda.py" > "$out/pytest.txt" 2>&1
  report "test_cuda.py" $? "$out/pytest.txt" 'passed'
  $python -m vecina.bench --device cuda --warmup 20 --repeats 200 --json "$out/python.json" \
    > "$out/python.txt" 2>&1
  report "vecina.bench" $? "$out/python.txt" 'merge'
fi
[ $failures = 0 ] && echo "all passed" || { echo "$failures failed"; exit 1; }
