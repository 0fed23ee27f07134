#!/bin/sh
# SPDX-License-Identifier: MIT
# The Python package in .venv: python.sh venv | torch | install | test. `./dev test` runs all four.
# PYTHON names the interpreter that makes .venv (python3). What is there already is kept. The wheel
# takes the library of build/.
set -eu
cd "$(dirname "$0")/.."
python=.venv/bin/python
pip() { "$python" -m pip --disable-pip-version-check "$@"; }

case ${1:-} in
  venv)
    [ -x "$python" ] || "${PYTHON:-python3}" -m venv .venv
    pip install -r tests/python/requirements.txt
    ;;
  torch) pip install -r tests/python/requirements-torch.txt ;;
  install)
    tools/build.sh vecina_static
    rm -rf build/wheel
    pip wheel --no-build-isolation --no-deps -w build/wheel \
      --config-settings=cmake.define.VECINA_PREBUILT="$PWD/build/libvecina.a" .
    tools/check_wheel.sh build/wheel/*.whl
    pip install --no-deps --force-reinstall build/wheel/*.whl
    ;;
  test)
    shift
    "$python" -m pytest -p no:cacheprovider "$@"
    ;;
  *) echo "usage: $0 venv|torch|install|test [ARGUMENT...]" >&2; exit 2 ;;
esac
