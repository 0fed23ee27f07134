# SPDX-License-Identifier: MIT
"""The backends of natten-mlx: any of its names can be chosen, as one that is not there is replaced
by another; here they are all vecina's."""

from __future__ import annotations

from vecina.compat import _port_backends

_choice = _port_backends.Choice("pure", "fast_metal", "nanobind")
register_backend, set_backend = _choice.register_backend, _choice.set_backend
get_backend, active_module = _choice.get_backend, _choice.active_module
