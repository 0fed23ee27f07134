# SPDX-License-Identifier: MIT
"""What every test of vecina.compat leaves behind: no alias."""

import sys

import pytest


@pytest.fixture(autouse=True)
def _leave_no_aliases():
    yield
    aliases = ("natten", "natten_mps", "natten_mlx")
    for name in [k for k in sys.modules if k.partition(".")[0] in aliases]:
        del sys.modules[name]
