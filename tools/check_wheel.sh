#!/bin/sh
# SPDX-License-Identifier: MIT
# Whether a wheel can go out: size, contents, the libraries that it needs, the stable ABI.
# usage: tools/check_wheel.sh WHEEL
set -eu
cd "$(dirname "$0")/.."
wheel=$1
python=.venv/bin/python
fail() {
  echo "$wheel: $1" >&2
  exit 1
}

bytes=$(wc -c <"$wheel")
[ "$bytes" -lt 10000000 ] || fail "$bytes bytes; less than 10 MB is the promise."
names=$("$python" -m zipfile -l "$wheel")
for needed in vecina/py.typed vecina/_vecina.pyi licenses/LICENSE licenses/python/licenses/; do
  case $names in
    *"$needed"*) ;;
    *) fail "$needed is missing." ;;
  esac
done

# The libraries that it needs are those of every Linux of some age, and nothing of torch.
shown=$("$python" -m auditwheel show "$wheel" 2>&1) || fail "$shown"
platform=$(printf '%s' "$shown" | tr '\n' ' ' | sed -n 's/.*platform tag: *"\(manylinux[^"]*\)".*/\1/p')
[ -n "$platform" ] || fail "auditwheel finds no manylinux tag: $shown"
case $wheel in
  *abi3*) "$python" -m abi3audit --strict --summary "$wheel" ;;
esac
echo "$(basename "$wheel"): $bytes bytes, $platform"
