#!/bin/sh
# SPDX-License-Identifier: MIT
# Builds the library and the tool with clang++, warnings as errors, and compares the multiply-add
# peak that it measures with that of the release build (g++): less than 5 % apart, else one of the
# two compilers spills the registers of that loop. The best of several turns counts, since a busy
# machine only slows. Without VECINA_SHARE_HEADERS, so that each source includes what it needs.
set -eu
cd "$(dirname "$0")/.."
cmake -S . -B build-clang -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_C_COMPILER=clang \
  -DCMAKE_CXX_COMPILER=clang++ -DVECINA_BUILD_CLI=ON -DVECINA_WERROR=ON \
  -DVECINA_SHARE_HEADERS=OFF
ninja -C build-clang vecina vecina_static vecina_cli
python3 - <<'PYTHON'
import json
import subprocess
import sys


def peaks(build):
    """Every multiply-add figure of the cpu backend, by name."""
    text = subprocess.check_output([f"{build}/vecina", "info", "--json", "--peak"])
    found = {}

    def walk(name, value):
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{name}.{key}", inner)
        elif isinstance(value, (int, float)) and "fma" in name:
            found[name] = float(value)

    walk("cpu", json.loads(text)["peak"]["cpu"])
    return found


best = {"build": {}, "build-clang": {}}
for turn in range(8):
    for build, figures in best.items():
        for name, value in peaks(build).items():
            figures[name] = max(figures.get(name, 0.0), value)
    apart = {name: abs(best["build-clang"][name] / value - 1.0)
             for name, value in best["build"].items()}
    if apart and max(apart.values()) < 0.05 and turn > 0:
        break
for name, value in best["build"].items():
    print(f"{name}: g++ {value:.1f}, clang++ {best['build-clang'][name]:.1f}, "
          f"{100 * apart[name]:.1f} % apart")
if not apart:
    print("info --peak holds no multiply-add figure")
sys.exit(not apart or max(apart.values()) >= 0.05)
PYTHON
