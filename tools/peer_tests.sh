#!/bin/sh
# SPDX-License-Identifier: MIT
# Runs the unchanged tests of NATTEN, natten-mps or natten-mlx, out of a clone of it, on vecina.compat
# in .venv (PYTHON names another interpreter).
# usage: tools/peer_tests.sh natten|natten_mps|natten_mlx VERSION CLONE [ARGUMENT of pytest...]
#   for example  tools/peer_tests.sh natten 0.17.5 ~/NATTEN -k test_na2d
set -eu
[ $# -ge 3 ] || { sed -n '3,6s/^# *//p' "$0" >&2; exit 2; }
name=$1 version=$2 clone=$3
shift 3
python=${PYTHON:-$(cd "$(dirname "$0")/.." && pwd)/.venv/bin/python}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
git -C "$clone" archive "v$version" tests | tar -x -C "$folder"
case $name in natten_m*) chosen=None ;; *) chosen="'$version'" ;; esac
cat >"$folder/alias_of_vecina.py" <<ALIAS
import vecina.compat

vecina.compat.install("$name", $chosen)
ALIAS
cd "$folder"
PYTHONPATH=$folder "$python" -m pytest -q -p alias_of_vecina -p no:cacheprovider -c /dev/null \
  --rootdir "$folder" tests "$@"
