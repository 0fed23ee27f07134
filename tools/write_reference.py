#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes docs/reference/MODULE.md from the docstrings of the installed package.

Of each module in MODULES what __all__ names, in the order of that list. A module whose framework is
not installed is left as it is, and named. tests/python/test_reference.py says if a page is old.
"""
import importlib
import inspect
import pathlib
import re

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "docs" / "reference"
MODULES = (
    "vecina", "vecina.torch", "vecina.numpy", "vecina.mlx", "vecina.jax", "vecina.compat",
)
WIDTH = 100


def annotation_of(annotation) -> str:
    """As it stands in the source; most are strings, since modules postpone their evaluation."""
    if isinstance(annotation, str):
        return annotation
    return inspect.formatannotation(annotation)


def parameter_of(parameter: inspect.Parameter) -> str:
    text = parameter.name
    if parameter.kind is parameter.VAR_POSITIONAL:
        text = f"*{text}"
    if parameter.kind is parameter.VAR_KEYWORD:
        text = f"**{text}"
    if parameter.annotation is not parameter.empty:
        text += f": {annotation_of(parameter.annotation)}"
    if parameter.default is not parameter.empty:
        equals = "=" if parameter.annotation is parameter.empty else " = "
        text += f"{equals}{parameter.default!r}"
    return text


def signature_of(name: str, function) -> str:
    """The call, on one line or with one parameter on each."""
    signature = inspect.signature(function)
    parts, has_star = [], False
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not has_star:
            parts.append("*")
        has_star |= parameter.kind in (parameter.VAR_POSITIONAL, parameter.KEYWORD_ONLY)
        parts.append(parameter_of(parameter))
    result = signature.return_annotation
    arrow = "" if result is signature.empty else f" -> {annotation_of(result)}"
    line = f"{name}({', '.join(parts)}){arrow}"
    if len(line) <= WIDTH:
        return line
    inner = "".join(f"    {part},\n" for part in parts)
    return f"{name}(\n{inner}){arrow}"


def markdown(docstring: str) -> list[str]:
    """Lines of a docstring: ``code`` as `code`, and its sections as lists."""
    lines, in_section = [], False
    for line in inspect.cleandoc(docstring).replace("``", "`").splitlines():
        if re.fullmatch(r"(Args|Returns|Raises):", line):
            lines += [{"Args:": "Arguments:"}.get(line, line), ""]
            in_section = line[:-1]
        elif not line.startswith(" ") and line:
            in_section = None
            lines.append(line)
        elif in_section == "Args" and re.match(r" {4}\S", line):
            names, colon, text = line.strip().partition(":")
            is_argument = colon and re.fullmatch(r"[a-z0-9_, ]+", names)
            lines.append(f"- `{names}`:{text}" if is_argument else f"- {line.strip()}")
        elif in_section == "Args" and line:
            lines.append(f"  {line.strip()}")
        else:
            lines.append(line.strip())
    return lines


def entry_of(level: str, name: str, member) -> list[str]:
    """The lines of one function or class."""
    lines = [f"{level} {name}", "", "```python", signature_of(name, member), "```", ""]
    return [*lines, *markdown(member.__doc__ or ""), ""]


def page_of(name: str) -> str:
    module, shown = importlib.import_module(name), {}
    lines = [f"# {name}", "", *markdown(module.__doc__), ""]
    for member_name in module.__all__:
        member = getattr(module, member_name)
        if not inspect.isclass(member):
            lines += entry_of("##", member_name, member) if callable(member) else []
            continue
        first = shown.setdefault(member.__doc__, member_name)
        if first != member_name:
            lines += [f"## {member_name}", "", f"As {first}.", ""]
            continue
        lines += entry_of("##", member_name, member)
        call = "forward" if hasattr(member, "forward") else "__call__"
        lines += entry_of("###", call, getattr(member, call))
    lines += ["Written by `tools/write_reference.py` from the docstrings; do not edit.", ""]
    return "\n".join(lines)


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name in MODULES:
        try:
            page = page_of(name)
        except ImportError as error:
            print(f"{name}: left as it is: {error}")
            continue
        (FOLDER / f"{name}.md").write_text(page)


if __name__ == "__main__":
    main()
