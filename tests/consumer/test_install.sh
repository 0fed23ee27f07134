#!/bin/sh
# SPDX-License-Identifier: MIT
# Installs the built library into a prefix and uses it as a stranger would: from C and C++, through
# CMake and pkg-config, shared and static. Also checks what the shared library exports and needs.
# Usage: test_install.sh BUILD_DIR SCRATCH_DIR
set -eu
[ $# = 2 ] || { echo "usage: $0 BUILD_DIR SCRATCH_DIR" >&2; exit 2; }
consumer=$(cd "$(dirname "$0")" && pwd)
build=$(cd "$1" && pwd)
rm -rf "$2"
mkdir -p "$2"
scratch=$(cd "$2" && pwd)
prefix=$scratch/prefix

fail() {
  echo "FAILED: $*" >&2
  exit 1
}

cmake --install "$build" --prefix "$prefix" >"$scratch/install.log" ||
  { cat "$scratch/install.log"; fail "install"; }
library=$(find "$prefix" -name libvecina.so)
libdir=$(dirname "$library")

# The prefix is moved first: nothing installed may name the place it was installed to.
mv "$prefix" "$prefix.moved"
libdir=$prefix.moved${libdir#"$prefix"}
prefix=$prefix.moved
library=$libdir/libvecina.so

readelf -d "$library" >"$scratch/dynamic"
grep -q 'SONAME.*\[libvecina\.so\.0\]' "$scratch/dynamic" || fail "SONAME is not libvecina.so.0"
if grep NEEDED "$scratch/dynamic" | grep -iE 'cuda|nvrtc|vulkan|python|torch'; then
  fail "the library needs the above at load time"
fi
nm -D --defined-only "$library" | awk '{print $3}' >"$scratch/symbols"
grep -q '^vecina_forward$' "$scratch/symbols" || fail "vecina_forward is not exported"
if grep -v '^vecina_' "$scratch/symbols"; then fail "the symbols above are exported"; fi

# build_with_cmake NAME SOURCE [OPTION...]
build_with_cmake() {
  name=$1 source=$2
  shift 2
  { cmake -S "$consumer/$source" -B "$scratch/$name" -G Ninja -DCMAKE_BUILD_TYPE=Release \
      -DCMAKE_PREFIX_PATH="$prefix" "$@" && ninja -C "$scratch/$name"; } >"$scratch/$name.log" 2>&1 ||
    { cat "$scratch/$name.log"; fail "$name does not build"; }
  "$scratch/$name/consumer" || fail "$name gives a wrong number"
}
build_with_cmake c_shared c
build_with_cmake c_static c -DCONSUMER_STATIC=ON
build_with_cmake cpp_shared cpp
build_with_cmake cpp_static cpp -DCONSUMER_STATIC=ON
for name in c_static cpp_static; do
  if readelf -d "$scratch/$name/consumer" | grep libvecina; then fail "$name links this"; fi
done

PKG_CONFIG_PATH=$libdir/pkgconfig
export PKG_CONFIG_PATH
# shellcheck disable=SC2046  # the flags are words
${CC:-cc} -std=c11 $(pkg-config --cflags vecina) "$consumer/c/main.c" -o "$scratch/c_pkgconfig" \
  $(pkg-config --libs vecina) -lm || fail "C does not build with pkg-config"
LD_LIBRARY_PATH=$libdir "$scratch/c_pkgconfig" || fail "C with pkg-config gives a wrong number"
# The static library by its name: beside the shared one, -lvecina would take that.
libs=$(pkg-config --static --libs vecina | sed 's/-lvecina/-l:libvecina.a/')
# shellcheck disable=SC2046,SC2086
${CC:-cc} -std=c11 $(pkg-config --cflags vecina) "$consumer/c/main.c" $libs \
  -o "$scratch/c_static_pkgconfig" || fail "C does not build with the static library"
"$scratch/c_static_pkgconfig" || fail "C with the static library gives a wrong number"
echo "install ok"
