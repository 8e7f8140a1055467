"""What differs between two sides, and which of it is known, with a reason."""

import tomllib
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

KEYS = {"piece", "test", "without", "with", "reason", "user", "sometimes"}


class ListError(Exception):
    """The list of known differences says something that cannot be."""


@dataclass
class Known:
    """An entry of the list."""

    piece: str
    test: str
    without: str
    with_room: str
    reason: str
    sometimes: bool
    seen: int = 0

    def covers(self, piece, difference):
        return (self.piece == piece and fnmatchcase(difference.test, self.test)
                and fnmatchcase(difference.without, self.without) and fnmatchcase(difference.with_room, self.with_room))


@dataclass(frozen=True)
class Difference:
    """A test that ended in another way. A side on which it did not run at all has `absent`."""

    test: str
    without: str
    with_room: str


@dataclass
class Compared:
    """What came of a piece on both sides."""

    tests: int = 0
    same: int = 0
    passed: int = 0
    explained: list = field(default_factory=list)
    unexplained: list = field(default_factory=list)
    unsteady: list = field(default_factory=list)


def load(path, user):
    """The entries of the list that hold for this kind of user, `root` or `other`."""
    with open(path, "rb") as file:
        blocks = tomllib.load(file).get("difference", [])
    known = []
    for number, block in enumerate(blocks, 1):
        if set(block) - KEYS or (KEYS - {"user", "sometimes"}) - set(block):
            raise ListError(f"{path}: entry {number} must have piece, test, without, with and reason, can have user and sometimes, has "
                            f"{', '.join(sorted(block))}")
        if block.get("user", user) == user:
            known.append(Known(block["piece"], block["test"], block["without"], block["with"], block["reason"],
                               block.get("sometimes", False)))
    return known


def differences(without, with_room):
    return [Difference(test, without.get(test, "absent"), with_room.get(test, "absent"))
            for test in sorted(without.keys() | with_room.keys()) if without.get(test) != with_room.get(test)]


def sort_out(piece, found, known):
    """Splits differences into those of the list, as (difference, entry), and the others."""
    explained, unexplained = [], []
    for difference in found:
        entry = next((entry for entry in known if entry.covers(piece, difference)), None)
        if entry is None:
            unexplained.append(difference)
        else:
            explained.append((difference, entry))
    return explained, unexplained
