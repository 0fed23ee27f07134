#!/bin/sh
# SPDX-License-Identifier: MIT
# `./dev test`: builds, runs every test and check, and ends with `N passed, N failed`.
#   --full                         everything
#   --full=asan,tsan,check,clang,wheels   the parts named
set -eu
cd "$(dirname "$0")/.."
. tools/step.sh

full=
case ${1:-} in
  "") ;;
  --full) full=asan,tsan,check,clang,wheels ;;
  --full=*) full=${1#--full=} ;;
  *) echo "usage: ./dev test [--full[=asan,tsan,check,clang,wheels]]" >&2; exit 2 ;;
esac
wants() { case ",$full," in *",$1,"*) ;; *) return 1 ;; esac; }

passed=0
failed=0
# check LABEL COMMAND [ARGUMENT...]: one check, counted.
check() {
  if step "$@"; then passed=$((passed + 1)); else failed=$((failed + 1)); fi
}
# ctest_in LABEL FOLDER [ARGUMENT...]: every test of ctest, counted.
ctest_in() {
  ctest_label=$1
  ctest_folder=$2
  shift 2
  step "$ctest_label" ctest --test-dir "$ctest_folder" --output-on-failure -j2 "$@" || true
  counts=$(sed -n 's/.* tests passed, \([0-9]*\) tests failed out of \([0-9]*\).*/\1 \2/p' \
    "$step_log" | tail -n 1)
  if [ -z "$counts" ]; then  # ctest found no test, or never got so far
    failed=$((failed + 1))
    return
  fi
  skipped=$(grep -c '\*\*\*Skipped' "$step_log" || true)
  failed=$((failed + ${counts% *}))
  passed=$((passed + ${counts#* } - ${counts% *} - skipped))
  [ "$skipped" = 0 ] || echo "        $skipped tests skipped (not for this backend or case)"
}
finish() {
  echo "$passed passed, $failed failed"
  [ "$failed" = 0 ] || exit 1
  exit 0
}
# build_preset PRESET FOLDER TARGET [OPTION...]: false if it does not build.
build_preset() {
  preset=$1
  folder=$2
  target=$3
  shift 3
  if step "configure $preset" cmake --preset "$preset" "$@" &&
    step "build $preset" ninja -C "$folder" "$target"
  then
    passed=$((passed + 1))
  else
    failed=$((failed + 1))
    return 1
  fi
}

# The Python package, built and installed into .venv (which is there), and its tests, counted.
test_python() {
  if [ "${TORCH:-1}" = 0 ]; then
    echo "        TORCH=0: PyTorch is left out; the tests of vecina.torch are skipped"
  else
    [ -d .venv/lib/python3*/site-packages/torch ] ||
      echo "        PyTorch: 0.5 GB and its CUDA libraries, 4.7 GB in .venv, kept; TORCH=0 leaves it out"
    check "python torch" tools/python.sh torch
  fi
  step "python build" tools/python.sh install || { failed=$((failed + 1)); return; }
  step "python tests" tools/python.sh test || true
  summary=$(grep -E ' in [0-9.]+s' "$step_log" | tail -n 1)
  count() { printf '%s' "$summary" | sed -n "s/.*\\b\\([0-9][0-9]*\\) $1.*/\\1/p"; }
  [ -n "$(count passed)" ] || failed=$((failed + 1))
  passed=$((passed + $(count passed | grep . || echo 0)))
  failed=$((failed + $(count failed | grep . || echo 0) + $(count error | grep . || echo 0)))
  [ -z "$(count skipped)" ] || echo "        $(count skipped) skipped"
}

check "layers" python3 tools/check_layers.py
check "rules" tools/check_rules.sh
check "format" tools/format.sh
check "python packages" tools/python.sh venv
# The tests compile the CUDA kernels; the compiler of a known version is one of those packages.
for wheel in "$PWD"/.venv/lib/python3*/site-packages/nvidia/cu13/lib/libnvrtc.so.13; do
  [ ! -e "$wheel" ] || export VECINA_NVRTC="${VECINA_NVRTC:-$wheel}"
done
build_preset release build all -DVECINA_BUILD_TESTS=ON -DVECINA_WERROR=ON || finish
ctest_in "tests" build
check "fuzz" tools/fuzz.sh 20
test_python

if wants asan && build_preset asan build-asan all; then ctest_in "tests asan" build-asan; fi
if wants tsan && build_preset tsan build-tsan threads_test; then
  ctest_in "tests tsan" build-tsan -L threads
fi
if wants check; then
  for seed in 10000 20000 30000 40000; do  # case i has seed + i
    check "5000 cases, seed $seed" build/vecina check --cases 5000 --seed $seed
  done
  check "2000 calls from Python" env VECINA_EXAMPLES=2000 tools/python.sh test \
    tests/python/test_oracle.py
fi
if wants clang; then check "clang" tools/check_clang.sh; fi
if wants wheels; then check "wheels" tools/wheels.sh; fi
finish
