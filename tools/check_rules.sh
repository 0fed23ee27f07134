#!/bin/sh
# SPDX-License-Identifier: MIT
# The rules of the house that a grep can check; tools/check_layers.py has those about includes.
# The exported symbols and the libraries needed at load time: tests/consumer/test_install.sh.
set -eu
cd "$(dirname "$0")/.."
bad=0
# complain RULE FOUND: a rule is broken if anything was found.
complain() {
  [ -n "$2" ] || return 0
  printf '%s:\n%s\n' "$1" "$2" >&2
  bad=1
}
sources() { find include src cli tests examples python -type f -name '*.[ch]*' "$@"; }

complain "more public headers than vecina.h, vecina.hpp and the latter's tensor.hpp, problem.hpp" \
  "$(find include -type f ! -name vecina.h ! -name vecina.hpp ! -name tensor.hpp ! -name problem.hpp)"
flags="-Wall -Wextra -Wpedantic -Werror -fsyntax-only"
# shellcheck disable=SC2086  # words
complain "vecina.h does not compile alone as C11" \
  "$(${CC:-cc} -std=c11 $flags -x c include/vecina/vecina.h 2>&1)"
for header in include/vecina/*; do
  # shellcheck disable=SC2086
  complain "$header does not compile alone as C++20" \
    "$(${CXX:-c++} -std=c++20 $flags -Iinclude -x c++ "$header" 2>&1)"
done

complain "the window formula stands outside of core/window.h" "$(
  grep -rnE '(kernel_size|stride) */ *2' include src cli examples tools \
    --include='*.[chp]*' | grep -vE '^src/(core/window\.h|reference/)')"

complain "input is rejected outside of the problem, the arguments and the api" "$(
  grep -rn 'invalid(' src | grep -vE '^src/(core/(problem|arguments|status)|api/)')"
complain "the library throws" \
  "$(grep -rnE '(^|[^a-z_])throw([ ;]|$)' src --include='*.[ch]*' | grep -vE '^[^:]*:[0-9]*: *//')"

# Sizes are alarms: over 800 lines someone should look, over 1000 it fails.
complain "files of over 1000 lines" \
  "$(sources -exec awk 'END { if (FNR > 1000) print FILENAME ": " FNR }' {} \;)"
sources -exec awk 'END { if (FNR > 800) print "note: " FILENAME " has " FNR " lines" }' {} \;
dependencies=$(grep -rhoE 'find_package\((\w+)' CMakeLists.txt cli tests benchmarks \
  --include=CMakeLists.txt |
  grep -v vecina | sort -u)
[ "$(echo "$dependencies" | wc -l)" -le 8 ] || complain "more than 8 dependencies" "$dependencies"

[ $bad = 0 ] && echo "rules ok"
exit $bad
