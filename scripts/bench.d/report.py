"""The table of figures: printed as it grows, kept for --json."""

import os
import sys


class Unmeasured(Exception):
    """A case that gave no figure, with the reason that the reader gets instead."""


class Paint:
    def __init__(self):
        self.on = sys.stdout.isatty() and not os.environ.get("NO_COLOR")

    def __call__(self, code, text):
        return f"\x1b[{code}m{text}\x1b[0m" if self.on else text

    def heading(self, text):
        print("\n" + self("1", text))


class Report:
    """The table: printed as it grows, kept for --json."""

    COLUMNS = "{:<46} {:>11} {:>11} {:>8}  {}"

    def __init__(self, paint):
        self.paint = paint
        self.rows = []
        self.failures = 0

    def header(self):
        print(self.COLUMNS.format("", "measured", "against", "ratio", "target"))

    def row(self, case, ours, against, limit=None, unit="ms"):
        """One comparison. `ours` is None when anchorhold was left out; `limit` is the highest ratio that is good."""
        ratio = ours / against if ours is not None else None
        met = None if limit is None or ratio is None else ratio <= limit
        self.rows.append({"case": case, "ours": ours, "against": against, "unit": unit, "ratio": ratio,
                          "limit": limit, "met": met})
        print(self.COLUMNS.format(case, self.figure(ours, unit), self.figure(against, unit),
                                  "-" if ratio is None else f"{ratio:.3f}x" if ratio < 0.1 else f"{ratio:.2f}x",
                                  self.verdict("" if limit is None else f"at most {limit:g}x", met)))

    def size(self, case, value, limit, unit):
        met = value <= limit
        self.rows.append({"case": case, "ours": value, "limit": limit, "unit": unit, "met": met})
        print(self.COLUMNS.format(case, self.figure(value, unit), "", "",
                                  self.verdict(f"at most {limit:g} {unit}", met)))

    def fact(self, case, text, met=None):
        self.rows.append({"case": case, "text": text, "met": met})
        print(f"{case:<46} {self.verdict(text, met)}")

    def unmeasured(self, case, reason):
        self.failures += 1
        self.rows.append({"case": case, "unmeasured": str(reason)})
        print(f"{case:<46} {self.paint('31', 'not measured: ' + str(reason))}")

    def verdict(self, text, met):
        if met is None:
            return text
        return f"{text}: " + (self.paint("32", "met") if met else self.paint("31", "MISSED"))

    @staticmethod
    def figure(value, unit):
        if value is None:
            return "-"
        return f"{value:.0f} {unit}" if unit == "rooms/s" else f"{value:.2f} {unit}"
