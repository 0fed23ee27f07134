#!/usr/bin/env python3
"""Runs the code of README.md and docs/quickstart.md, and follows the links of every page.

Each ```c and ```cpp block is a whole program: it is compiled against the build folder and run; each
line of a ```sh block that starts with build/vecina is run. All must exit with 0. A ```text block
right after a block is what it must print. Usage: check_readme.py [BUILD_DIR]
"""
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
RUNS = ["README.md", "docs/quickstart.md"]
COMPILE = {
    "c": [os.environ.get("CC", "cc"), "-std=c11"],
    "cpp": [os.environ.get("CXX", "c++"), "-std=c++20"],
}
WARNINGS = ["-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror"]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)
LINK = re.compile(r"\]\(([^)#\s]+)?(#[^)\s]+)?\)")


def run(command, **options):
    return subprocess.run(command, cwd=ROOT, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, **options)


def run_program(language, code, build, scratch):
    """Returns (exit status, output) of the program `code`."""
    source = scratch / f"block.{'c' if language == 'c' else 'cc'}"
    source.write_text(code)
    flags = ["-I", ROOT / "include", f"-L{build}", "-lvecina", f"-Wl,-rpath,{build}", "-lm"]
    compiled = run([*COMPILE[language], *WARNINGS, source, "-o", scratch / "block", *flags])
    if compiled.returncode:
        return compiled.returncode, compiled.stdout
    ran = run([scratch / "block"])
    return ran.returncode, ran.stdout


def run_lines(code, build):
    """The same of the lines that call the command line tool."""
    output = ""
    for line in code.splitlines():
        if not line.startswith("build/vecina"):
            continue
        ran = run([str(build / "vecina"), *shlex.split(line)[1:]])
        output += ran.stdout
        if ran.returncode:
            return ran.returncode, f"{line}\n{output}"
    return 0, output


def check_blocks(page, build, scratch):
    """Runs the blocks of one page; returns (how many ran, complaints)."""
    text = (ROOT / page).read_text()
    blocks = list(BLOCK.finditer(text))
    count, bad = 0, []
    for i, block in enumerate(blocks):
        language, code = block.groups()
        if language in COMPILE:
            status, output = run_program(language, code, build, scratch)
        elif language == "sh":
            status, output = run_lines(code, build)
        else:
            continue
        count += 1
        where = f"{page}:{text.count(chr(10), 0, block.start()) + 1}"
        if status:
            bad.append(f"{where}: exit status {status}:\n{output}")
            continue
        follows = blocks[i + 1] if i + 1 < len(blocks) else None
        if follows and follows[1] == "text" and not text[block.end():follows.start()].strip():
            if output != follows[2]:
                bad.append(f"{where}: prints\n{output}but the page says\n{follows[2]}")
    return count, bad


def anchors(page):
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {"#" + re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def check_links():
    bad = []
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        for target, anchor in LINK.findall(page.read_text()):
            if re.match(r"\w+:", target):
                continue
            file = (page.parent / target) if target else page
            if not file.exists():
                bad.append(f"{page.relative_to(ROOT)}: {target} does not exist")
            elif anchor and file.suffix == ".md" and anchor not in anchors(file):
                bad.append(f"{page.relative_to(ROOT)}: {target} has no {anchor}")
    return bad


def main():
    build = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build").resolve()
    bad = check_links()
    total = 0
    with tempfile.TemporaryDirectory() as scratch:
        for page in RUNS:
            count, complaints = check_blocks(page, build, pathlib.Path(scratch))
            total += count
            bad += complaints
    print("\n".join(bad) or f"{total} blocks ran, links ok")
    return 1 if bad or not total else 0


if __name__ == "__main__":
    sys.exit(main())
