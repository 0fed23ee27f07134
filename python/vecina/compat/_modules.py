# SPDX-License-Identifier: MIT
"""What the modules of each release have that vecina.torch's and vecina.mlx's do not."""

from __future__ import annotations

from vecina.compat import _checks, _port_operations, _port_utils


class Natten:
    """0.20 and later: arguments are checked when the module is made."""

    def __init__(self, **ours):
        window = [ours[name] for name in ("kernel_size", "stride", "dilation", "is_causal")]
        _checks.check_all_args(self.rank, *window)
        super().__init__(**ours)


class Natten17:
    """0.17. use_experimental_ops changes nothing."""

    def __init__(self, use_experimental_ops: bool = False, **ours):
        kernel, dilation, is_causal = _checks.check_all_args(
            self.rank, ours["kernel_size"], ours["dilation"], ours["is_causal"]
        )
        if ours["rel_pos_bias"] and any(is_causal):
            raise NotImplementedError("rel_pos_bias with is_causal is not defined in NATTEN.")
        super().__init__(**ours)


class Natten14:
    """0.14 and 0.15: odd windows; inputs smaller than the window are padded."""

    def __init__(self, kernel_size, dilation=1, kernel_size_d=None, dilation_d=None, **ours):
        dilation = dilation or 1
        kernel = [kernel_size] * self.rank
        dilations = [dilation] * self.rank
        if self.rank == 3:
            kernel[0], dilations[0] = kernel_size_d or kernel_size, dilation_d or dilation
        for k, d in zip(kernel, dilations):
            assert isinstance(k, int) and k > 1 and k % 2, f"kernel_size {k} is not odd and over 1."
            assert isinstance(d, int) and d >= 1, f"dilation {d} is not 1 or more."
        super().__init__(
            kernel_size=tuple(kernel), dilation=tuple(dilations), pads_small_inputs=True, **ours
        )


class Port:
    """natten-mps and natten-mlx: stride leaves queries out; forward takes lengths."""

    def __init__(self, **ours):
        for name in ("kernel_size", "dilation", "output_stride"):
            ours[name] = _port_utils.normalize_tuple_param(ours.get(name, 1), self.rank, name)
        flags = _port_utils.normalize_tuple_param(
            ours.get("is_causal", False), self.rank, "is_causal"
        )
        ours["is_causal"] = tuple(map(bool, flags))
        super().__init__(**ours)

    def _attend(self, query, key, value, lengths):
        if lengths is None:
            return super()._attend(query, key, value, None)
        name = "seq_lens" if self.rank == 1 else "spatial_sizes"
        return _port_operations.port_varlen(
            self.front, self.rank, query, key, value, self.kernel_size, self.dilation, self.scale,
            **{name: lengths},
        )  # fmt: skip
