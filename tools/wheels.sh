#!/bin/sh
# SPDX-License-Identifier: MIT
# Wheels of the Python package in build/wheels: one for each interpreter before 3.12, one for the
# stable ABI from the first later one. Each is checked (tools/check_wheel.sh), gets its manylinux tag
# and is tested without PyTorch in a virtual environment of its own. The first one compiles the
# library, as `pip install .` does, and says how long that takes; the others take that of build/.
# usage: tools/wheels.sh [PYTHON...]   (default: python3.10, python3.11, python3.12 where they run)
set -eu
cd "$(dirname "$0")/.."

if [ $# = 0 ]; then
  for version in 3.10 3.11 3.12; do
    for python in "python$version" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/python; do
      if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        set -- "$@" "$python"
        continue 2
      fi
    done
    echo "not checked: Python $version is not here"
  done
fi
rm -rf build/wheels build/python-*
mkdir -p build/wheels/built
tools/build.sh vecina_static
library=
for python; do
  name=$("$python" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
  venv=build/wheels/$name
  "$python" -m venv "$venv"
  pip() { "$venv/bin/python" -m pip --disable-pip-version-check -q "$@"; }
  pip install -r tests/python/requirements-wheel.txt
  start=$(date +%s)
  pip wheel --no-build-isolation --no-deps -w build/wheels/built \
    --config-settings=cmake.define.VECINA_PREBUILT="$library" .
  echo "$name: built in $(($(date +%s) - start)) s"
  library=$PWD/build/libvecina.a
  tools/check_wheel.sh build/wheels/built/*.whl
  PATH=$PWD/.venv/bin:$PATH .venv/bin/python -m auditwheel repair -w build/wheels \
    build/wheels/built/*.whl
  rm build/wheels/built/*
  pip install --no-deps build/wheels/*"$name-"*.whl
  "$venv/bin/python" -m pytest -p no:cacheprovider -q tests/python
done
