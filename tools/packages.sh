#!/bin/sh
# SPDX-License-Identifier: MIT
# Installs the Debian or Ubuntu packages that a command of ./dev lacks, without questions; says what
# to do where it cannot. Usage: packages.sh build|test|format|docs. Exit 2: something is missing.
set -eu
cd "$(dirname "$0")/.."

build="g++ cmake ninja-build libhwy-dev libfmt-dev libcli11-dev nlohmann-json3-dev"
case ${1:-} in
  build) packages=$build ;;
  test) packages="$build libgtest-dev libbenchmark-dev python3 python3-dev python3-venv clang clang-format pkg-config binutils" ;;
  format) packages=clang-format ;;
  docs) packages="$build python3" ;;
  *) echo "usage: $0 build|test|format|docs" >&2; exit 2 ;;
esac

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  for tool in c++ cmake ninja; do
    command -v "$tool" >/dev/null && continue
    echo "dev: $tool is missing. Needed here: a C++20 compiler, CMake 3.22, Ninja and the" \
      "libraries Highway, fmt, CLI11 and nlohmann-json; for tests also GoogleTest, Google Benchmark," \
      "Python 3, clang with its runtime, clang-format, pkg-config and binutils." >&2
    exit 2
  done
  exit 0
fi

# The fuzzers and sanitizers of clang have a package named by its version.
clang_runtime() {
  version=$({ dpkg-query -W -f '${Depends}' clang || apt-cache depends clang; } 2>/dev/null |
    sed -n 's/.*clang-\([0-9][0-9]*\).*/\1/p' | head -n 1)
  if [ -n "$version" ]; then echo "libclang-rt-$version-dev"; fi
}

find_missing() {
  wanted=$packages
  case $packages in *" clang "*) wanted="$packages $(clang_runtime)" ;; esac
  # shellcheck disable=SC2086  # a list of names
  installed=" $(dpkg-query -W -f '${Package} ${db:Status-Status}\n' $wanted 2>/dev/null |
    sed -n 's/ installed$//p' | tr '\n' ' ')"
  missing=
  for package in $wanted; do
    case $installed in *" $package "*) ;; *) missing="$missing $package" ;; esac
  done
  missing=${missing# }
}

find_missing
[ -n "$missing" ] || exit 0

sudo=
if [ "$(id -u)" != 0 ]; then
  if ! sudo -n true 2>/dev/null; then
    echo "dev: packages are missing, and installing them needs rights. Run this, then try again:" >&2
    echo "sudo apt-get update && sudo apt-get install -y --no-install-recommends $missing" >&2
    exit 2
  fi
  sudo=sudo
fi

apt() {
  $sudo env DEBIAN_FRONTEND=noninteractive apt-get -y -o DPkg::Lock::Timeout=300 \
    -o Acquire::Retries=2 -o Acquire::http::Timeout=30 "$@"
}
install_missing() {
  # shellcheck disable=SC2086  # a list of names
  apt install --no-install-recommends $missing
}

. tools/step.sh
echo "        missing packages: $missing"
# A source of no concern to us may fail here; what matters is whether the packages can be had.
step "package lists" apt update || true
find_missing
step "install packages" install_missing || true
find_missing
if [ -n "$missing" ]; then
  echo "dev: could not install $missing. Is there a network?" >&2
  exit 2
fi
