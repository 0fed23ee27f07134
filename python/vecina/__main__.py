# SPDX-License-Identifier: MIT
"""``python -m vecina``: the command line tool where it is installed, else what the package has."""

from __future__ import annotations

import json
import os
import shutil
import sys

import vecina

_HELP = """\
usage: python -m vecina bench | info | window LINE AXIS INDEX | why-not BACKEND [LINE]

  bench    times the calls from Python (python -m vecina.bench --help)
  info     version, backends and machine, as JSON
  window   first, step and count of the keys that a query sees along an axis
  why-not  why a backend cannot run a problem line here; nothing if it can

A line is a problem, such as "2d 56x56 heads 4 head_dim 32 kernel_size 7". Where the command line
tool `vecina` is on the PATH it takes the arguments instead; the wheel does not bring it."""


def main(arguments: list[str]) -> int:
    """Exit status: 0, or 2 if the arguments are wrong."""
    command, *rest = arguments or ["help"]
    try:
        if command == "info" and not rest:
            print(json.dumps(vecina.info(), indent=2))
        elif command == "window" and len(rest) == 3:
            print(*vecina.window(rest[0], int(rest[1]), int(rest[2])))
        elif command == "why-not" and len(rest) in (1, 2):
            reason = vecina.why_not(*rest)
            print(reason, end="\n" if reason else "")
        elif command == "bench":
            from vecina.bench import main as bench

            return bench(rest)
        else:
            known = command in ("help", "-h", "--help")
            print(_HELP, file=sys.stdout if known else sys.stderr)
            return 0 if known else 2
    except ValueError as error:
        print(f"vecina: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    tool = shutil.which("vecina")
    if tool is not None:
        os.execv(tool, [tool, *sys.argv[1:]])
    sys.exit(main(sys.argv[1:]))
