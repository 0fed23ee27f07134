#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Builds NATTEN's Hopper kernels as the yardstick of hopper.py and small.py.

    git clone --recursive https://github.com/SHI-Labs/NATTEN
    python benchmarks/natten/build.py NATTEN libnatten_hopper.so [--jobs N]

Needs nvcc of CUDA 12.3 or newer; neither a GPU nor PyTorch. Compiles the kernels listed in
natten_hopper.py from NATTEN's headers and its CUTLASS, unchanged, with NATTEN's own flags, for
sm_90a: bf16, the tiles and schedules that NATTEN takes by default. Each takes a minute or two.
Nothing of NATTEN is part of Vecina; the library that this makes is under its licence (MIT) and
CUTLASS' (BSD-3).
"""
import argparse
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))

from natten_hopper import KERNELS  # noqa: E402

FLAGS = [
    "-gencode=arch=compute_90a,code=sm_90a", "-std=c++20", "-O3", "-DNDEBUG", "--use_fast_math",
    "--expt-relaxed-constexpr", "--extended-lambda", "-Xcompiler=-fPIC,-fno-strict-aliasing",
    "-DNATTEN_WITH_CUTLASS", "-DNATTEN_WITH_HOPPER_FNA=1", "-DCUTLASS_ENABLE_TENSOR_CORE_MMA=1",
    "-w",
]  # fmt: skip


def defines(kernel):
    values = dict(NAME=kernel.name, RANK=len(kernel.query_tile), HEAD_DIM=kernel.head_dim,
                  QUERY_TILE=",".join(map(str, kernel.query_tile)),
                  KEY_TILE=",".join(map(str, kernel.key_tile)))
    if kernel.schedule:
        values["SCHEDULE"] = kernel.schedule
    return "".join(f"#define {name} {value}\n" for name, value in values.items())


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("natten", metavar="NATTEN", help="a checkout with its submodule")
    parser.add_argument("library", metavar="LIBRARY", help="where to write it")
    parser.add_argument("--cutlass", help="default: that of the checkout")
    parser.add_argument("--nvcc", default="nvcc")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()
    cutlass = options.cutlass or os.path.join(options.natten, "third_party", "cutlass")
    includes = [HERE, os.path.join(options.natten, "csrc", "include"),
                os.path.join(cutlass, "include")]  # fmt: skip
    for folder in includes:
        if not os.path.isdir(folder):
            parser.error(f"there is no {folder}")

    with tempfile.TemporaryDirectory() as folder:
        def compiled(source):
            target = os.path.join(folder, os.path.basename(source) + ".o")
            subprocess.run([options.nvcc, *FLAGS, *(f"-I{i}" for i in includes), "-c", "-o", target,
                            source], check=True)  # fmt: skip
            print(os.path.basename(source), flush=True)
            return target

        sources = [os.path.join(HERE, "permute.cu")]
        for kernel in KERNELS:
            sources.append(os.path.join(folder, kernel.name + ".cu"))
            with open(sources[-1], "w", encoding="utf-8") as file:
                file.write(defines(kernel) + '#include "attention.cuh"\n')
        with ThreadPoolExecutor(options.jobs) as pool:
            objects = list(pool.map(compiled, sources))
        subprocess.run([options.nvcc, "-shared", "-Xlinker=-Bsymbolic", "-o", options.library,
                        *objects], check=True)  # fmt: skip


if __name__ == "__main__":
    main()
