#!/bin/sh
# SPDX-License-Identifier: MIT
# Draws the pictures of docs/concepts.md with the library itself.
# Usage: draw_concepts.sh [--check], which compares instead and fails if a picture is out of date.
set -eu
cd "$(dirname "$0")/.."
folder=docs/images
check=
if [ "${1:-}" = --check ]; then
  check=$(mktemp -d)
  trap 'rm -rf "$check"' EXIT
fi
status=0

# draw NAME LINE
draw() {
  build/vecina window "$2" --svg "${check:-$folder}/$1.svg" >/dev/null
  [ -n "$check" ] || return 0
  cmp "$check/$1.svg" "$folder/$1.svg" || status=1
}
mkdir -p $folder
draw window "1d 10 kernel_size 3"
draw even "1d 10 kernel_size 4"
draw dilation "1d 12 kernel_size 3 dilation 2"
draw stride "1d 12 kernel_size 4 stride 2"
draw output_stride "1d 12 kernel_size 3 output_stride 2"
draw causal "1d 10 kernel_size 4 causal"
draw two_axes "2d 7x9 kernel_size 3x5"
[ $status = 0 ] || echo "tools/draw_concepts.sh draws them anew." >&2
exit $status
