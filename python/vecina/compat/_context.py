# SPDX-License-Identifier: MIT
"""NATTEN's switches, of every release. They are kept and given back; vecina has no such modes.

Its kernels are deterministic unless vecina.torch.allow_nondeterministic_backward() was called, and
what they need in memory does not depend on a preference.
"""

from __future__ import annotations

import enum
import warnings

import torch

import vecina.torch


class MemoryUsagePreference(enum.Enum):
    Default = 0
    Strict = 1
    Unrestricted = 2


#: switch -> (its value after reset, what a caller asks it by)
_SWITCHES = {
    "fused_na": (False, "is_fused_na_enabled"),
    "tiled_na": (True, "is_tiled_na_enabled"),
    "gemm_na": (True, "is_gemm_na_enabled"),
    "tf32_in_gemm_na": (True, "is_tf32_in_gemm_na_enabled"),
    "kv_parallelism_in_fused_na": (True, "is_kv_parallelism_in_fused_na_enabled"),
    "deterministic_algorithms": (False, "are_deterministic_algorithms_enabled"),
    "flex_compile": (False, "is_flex_compile_allowed"),
    "flex_compile_backprop": (False, "is_flex_compile_backprop_allowed"),
    "autotuner_for_forward": (False, "is_autotuner_enabled_for_forward"),
    "autotuner_for_backward": (False, "is_autotuner_enabled_for_backward"),
    "autotuner_thorough_for_forward": (False, "is_autotuner_thorough_for_forward"),
    "autotuner_thorough_for_backward": (False, "is_autotuner_thorough_for_backward"),
    "flex_attention": (False, "should_use_flex_attention"),
    "flex_attention_forced": (False, "should_force_flex_attention"),
}
_values: dict = {}


def _reset(prefix: str = "") -> None:
    _values.update({k: v for k, (v, _) in _SWITCHES.items() if k.startswith(prefix)})
    if not prefix:
        _values["memory"] = MemoryUsagePreference.Default


_reset()


class NattenContext:
    """Every switch."""

    @staticmethod
    def reset() -> None:
        _reset()


class AutotunerContext:
    """The switches of the autotuner; vecina needs none."""

    warmup_steps_forward, warmup_steps_backward = 5, 5
    steps_forward, steps_backward = 5, 5

    @staticmethod
    def reset() -> None:
        _reset("autotuner")
        for name in _STEPS:
            setattr(AutotunerContext, name, 5)


_STEPS = ("warmup_steps_forward", "warmup_steps_backward", "steps_forward", "steps_backward")


def _asker(name: str, function: str):
    def ask() -> bool:
        return _values[name]

    ask.__name__ = ask.__qualname__ = function
    ask.__doc__ = f"The switch {name}."
    return ask


for _name, (_, _function) in _SWITCHES.items():
    globals()[_function] = _asker(_name, _function)
is_fna_enabled = globals()["is_fused_na_enabled"]


def set_memory_usage_preference(pref: str = "default") -> None:
    """"default", "strict" or "unrestricted"."""
    names = {member.name.lower(): member for member in MemoryUsagePreference}
    if pref not in names:
        raise ValueError(f"memory preference {pref!r} is none of {', '.join(names)}.")
    _values["memory"] = names[pref]


def get_memory_usage_preference() -> MemoryUsagePreference:
    return _values["memory"]


def is_memory_usage_default() -> bool:
    return _values["memory"] is MemoryUsagePreference.Default


def is_memory_usage_strict() -> bool:
    return _values["memory"] is MemoryUsagePreference.Strict


def is_memory_usage_unrestricted() -> bool:
    return _values["memory"] is MemoryUsagePreference.Unrestricted


def use_deterministic_algorithms(mode: bool = True) -> None:
    """Keeps mode. With it, vecina is deterministic again, and KV parallelism is off."""
    _values["deterministic_algorithms"] = bool(mode)
    if mode:
        vecina.torch.allow_nondeterministic_backward(False)
        _values["kv_parallelism_in_fused_na"] = False


def use_kv_parallelism_in_fused_na(mode: bool = True) -> None:
    """Keeps mode; RuntimeError while deterministic algorithms are asked for."""
    if not mode:
        _values["kv_parallelism_in_fused_na"] = False
    elif torch.are_deterministic_algorithms_enabled():
        warnings.warn("KV parallelism stays off: torch's deterministic algorithms are on.")
    elif _values["deterministic_algorithms"]:
        raise RuntimeError(
            "KV parallelism cannot be turned on while use_deterministic_algorithms() is on."
        )
    else:
        _values["kv_parallelism_in_fused_na"] = True


def allow_flex_compile(mode: bool = True, backprop: bool = False) -> None:
    _values["flex_compile"], _values["flex_compile_backprop"] = bool(mode), bool(mode and backprop)


def allow_flex_compile_backprop(mode: bool = True) -> None:
    _values["flex_compile_backprop"] = bool(mode)
    if mode:
        _values["flex_compile"] = True


def disable_flex_compile() -> None:
    allow_flex_compile(False)


def disable_flex_compile_backprop() -> None:
    allow_flex_compile_backprop(False)


def use_fused_na(
    mode: bool = True,
    kv_parallel: bool = True,
    use_flex_attention: bool = False,
    force_flex_attention: bool = False,
) -> None:
    """Old modules then attend in one call instead of by qk and av."""
    _values["fused_na"] = bool(mode)
    _values["kv_parallelism_in_fused_na"] = bool(kv_parallel)
    _values["flex_attention"] = bool(use_flex_attention)
    _values["flex_attention_forced"] = bool(force_flex_attention)


use_fna = use_fused_na


def use_flex_attention() -> None:
    use_fused_na(True, use_flex_attention=True)


def force_flex_attention() -> None:
    use_fused_na(True, use_flex_attention=True, force_flex_attention=True)


def use_autotuner(
    forward_pass: bool | None = None,
    backward_pass: bool | None = None,
    thorough_mode_forward: bool | None = None,
    thorough_mode_backward: bool | None = None,
    warmup_steps_forward: int | None = None,
    warmup_steps_backward: int | None = None,
    steps_forward: int | None = None,
    steps_backward: int | None = None,
) -> None:
    """Keeps the modes; there is nothing to tune.

    As in NATTEN a mode is not turned on while torch's deterministic algorithms are, and
    RuntimeError is raised while NATTEN's own are.
    """
    modes = {
        "autotuner_for_forward": forward_pass,
        "autotuner_for_backward": backward_pass,
        "autotuner_thorough_for_forward": thorough_mode_forward,
        "autotuner_thorough_for_backward": thorough_mode_backward,
    }
    steps = (warmup_steps_forward, warmup_steps_backward, steps_forward, steps_backward)
    for name, count in zip(_STEPS, steps):
        if count is not None and (not isinstance(count, int) or count < 1):
            raise ValueError(f"{name} is {count!r}; a number of 1 or more is needed.")
    if forward_pass or backward_pass:
        if torch.are_deterministic_algorithms_enabled():
            warnings.warn("the autotuner stays off: torch's deterministic algorithms are on.")
            return
        if _values["deterministic_algorithms"]:
            raise RuntimeError(
                "the autotuner cannot be turned on while use_deterministic_algorithms() is on."
            )
    _values.update({name: bool(mode) for name, mode in modes.items() if mode is not None})
    for name, count in zip(_STEPS, steps):
        if count is not None:
            setattr(AutotunerContext, name, count)


def disable_autotuner() -> None:
    AutotunerContext.reset()


def is_autotuner_enabled() -> bool:
    return _values["autotuner_for_forward"] or _values["autotuner_for_backward"]


def _setter(name: str, function: str, fixed: bool | None = None):
    if fixed is None:

        def change(mode: bool = True) -> None:
            _values[name] = bool(mode)

    else:

        def change() -> None:
            _values[name] = fixed

    change.__name__ = change.__qualname__ = function
    change.__doc__ = f"Keeps the switch {name}; vecina chooses its kernels itself."
    return change


for _name, _old in (("tf32_in_gemm_na", "tf32"), ("tiled_na", "tiled_na"), ("gemm_na", "gemm_na")):
    for _function, _fixed in (
        (f"use_{_name}", None), (f"enable_{_old}", True), (f"disable_{_old}", False)
    ):  # fmt: skip
        globals()[_function] = _setter(_name, _function, _fixed)


def has_cuda() -> bool:
    """True if tensors on a CUDA device can be given."""
    from vecina.compat._backends import HAS_LIBNATTEN

    return HAS_LIBNATTEN


def _has(function: str):
    def has(device_index=None) -> bool:
        return has_cuda()

    has.__name__ = has.__qualname__ = function
    has.__doc__ = "As has_cuda(); the device makes no difference."
    return has


for _function in (
    "has_half has_bfloat has_gemm has_fna has_fused_na has_tf32_gemm has_fp32_gemm has_fp64_gemm"
).split():
    globals()[_function] = _has(_function)
