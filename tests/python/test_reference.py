# SPDX-License-Identifier: MIT
"""docs/reference is what tools/write_reference.py writes from the docstrings."""

import importlib.util
import pathlib

import pytest

PATH = pathlib.Path(__file__).parents[2] / "tools" / "write_reference.py"
SPEC = importlib.util.spec_from_file_location("write_reference", PATH)
write_reference = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(write_reference)


@pytest.mark.parametrize("name", write_reference.MODULES)
def test_page_is_current(name):
    framework = name.partition(".")[2]
    if framework in ("torch", "mlx", "jax"):
        pytest.importorskip(framework)
    written = (write_reference.FOLDER / f"{name}.md").read_text()
    assert write_reference.page_of(name) == written, "run `./dev docs`"


def test_sections_become_lists():
    def function(query, *, scale: float = 1.0, **rest) -> None:
        """Does ``this``.

        Args:
            query: what is
                given.
            The others: as there.

        Returns:
            nothing
        """

    entry = write_reference.entry_of("##", "function", function)
    assert entry[3] == "function(query, *, scale: float = 1.0, **rest) -> None"
    assert entry[6:] == [
        "Does `this`.", "", "Arguments:", "", "- `query`: what is", "  given.",
        "- The others: as there.", "", "Returns:", "", "nothing", "",
    ]  # fmt: skip
