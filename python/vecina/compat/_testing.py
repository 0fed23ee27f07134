# SPDX-License-Identifier: MIT
"""The decorators by which NATTEN's own tests skip what a machine does not have."""

from __future__ import annotations

import functools
import importlib.util
import unittest

from vecina.compat._backends import HAS_LIBNATTEN

#: decorator -> (False: skip, reason)
_NEEDS = {
    "libnatten_is_not_supported": (HAS_LIBNATTEN, "no backend for CUDA here"),
    "cuda_is_not_supported": (HAS_LIBNATTEN, "no backend for CUDA here"),
    "gemm_is_not_supported": (HAS_LIBNATTEN, "no backend for CUDA here"),
    "gemm_does_not_support_double_precision": (HAS_LIBNATTEN, "no backend for CUDA here"),
    "fna_is_not_supported": (HAS_LIBNATTEN, "no backend for CUDA here"),
    "flex_is_not_supported": (False, "vecina does not go through FlexAttention"),
    "flex_compile_is_not_supported": (False, "vecina does not go through FlexAttention"),
    "hopper_kernels_not_supported": (False, "NATTEN's own kernels"),
    "blackwell_kernels_not_supported": (False, "NATTEN's own kernels"),
    "nested_is_not_supported": (True, ""),
    "experimental_ops_are_not_supported": (True, ""),
    "fvcore_is_not_available": (importlib.util.find_spec("fvcore") is not None, "no fvcore here"),
    "triton_is_not_supported": (False, "vecina does not go through Triton"),
    "torch_compile_is_not_supported": (True, ""),
    "torch_flop_count_is_not_supported": (False, "expects that qk and av are not counted"),
    "not_running_extended_tests": (False, "extended tests"),
}


def _decorator(name: str):
    is_met, reason = _NEEDS[name]

    def make():
        def decorate(test):
            @functools.wraps(test)
            def run(self, *args, **keywords):
                if not is_met:
                    raise unittest.SkipTest(reason)
                return test(self, *args, **keywords)

            return run

        return decorate

    make.__name__ = make.__qualname__ = f"skip_if_{name}"
    make.__doc__ = "Runs the test." if is_met else f"Skips the test: {reason}."
    return make


for _name in _NEEDS:
    globals()[f"skip_if_{_name}"] = _decorator(_name)


def supports_float16(device) -> bool:
    return True


def supports_bfloat16(device) -> bool:
    return True


def fna_supports_additional_kv(head_dim: int, device_index=None) -> bool:
    return True
