#!/bin/sh
# SPDX-License-Identifier: MIT
# Checks that the C and C++ sources are formatted, or formats them (--fix).
# Versions of clang-format differ in details, so only the one below has a say.
set -eu
cd "$(dirname "$0")/.."
version=14 # Debian 12

tool=clang-format-$version
command -v "$tool" >/dev/null || tool=clang-format
found=$("$tool" --version | sed 's/.*version \([0-9]*\).*/\1/')
if [ "$found" != $version ]; then
  echo "not checked: this is clang-format $found, the sources are formatted by $version."
  [ "${1:-}" != --fix ] || exit 2
  exit 0
fi
mode="--dry-run -Werror"
[ "${1:-}" != --fix ] || mode=-i
# shellcheck disable=SC2086  # mode is words
find include src cli tests examples python benchmarks -type f \
  \( -name '*.c' -o -name '*.cc' -o -name '*.h' -o -name '*.hpp' \) -print0 |
  xargs -0 "$tool" $mode
