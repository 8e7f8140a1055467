"""A piece of real work: a shell script whose head says what it is and what it needs, and whose output is its results.

The head is the first run of comment lines below `#!`:

    # title: GNU sed, configured, built and tested
    # packages: build-essential
    # sources: sed
    # crates: nix@0.26.4

Sources are Debian source packages; the script finds the upstream tarball as /sources/NAME.tar. Crates come with all that
their tests need, as the directory /sources/NAME with `vendor` in it.

On standard output the script prints one line for each test, `RESULT NAME`: a word without spaces, a space, and a name that no
other line has. Everything else goes to standard error, where it is kept as the log.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

KEYS = ("title", "packages", "sources", "crates")


class PieceError(Exception):
    """A script that breaks the rules of its kind."""


@dataclass
class Piece:
    """What the head of a script says."""

    name: str
    script: Path
    title: str = ""
    packages: list = field(default_factory=list)
    sources: list = field(default_factory=list)
    crates: list = field(default_factory=list)


def read(script):
    piece = Piece(script.stem, script)
    for line in script.read_text().splitlines()[1:]:
        if not line.startswith("#"):
            break
        said = re.fullmatch(r"# (\w+): (.+)", line)
        if not said:
            continue
        key, value = said.groups()
        if key not in KEYS:
            raise PieceError(f"{script}: no head has `{key}`; it can have {', '.join(KEYS)}")
        if key == "title":
            piece.title = value
        else:
            getattr(piece, key).extend(value.split())
    if not piece.title:
        raise PieceError(f"{script}: its head has no `# title:`")
    return piece


def read_all(directory):
    return [read(script) for script in sorted(directory.glob("*.sh"))]


def results(text):
    """Name to result. A name that was printed twice has both, so that neither is lost."""
    found = {}
    for line in text.splitlines():
        if not line.strip():
            continue
        result, _, name = line.partition(" ")
        name = name.strip() or "(a line without a name)"
        found[name] = f"{found[name]}+{result}" if name in found else result
    return found
