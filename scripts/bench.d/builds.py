"""What builds and the store cost, against a real Nix, openssl and cp.

A real Nix is asked to do the same work in a store of its own whenever one is installed (Debian's nix-bin).
"""

import json
import os
import random
import shutil
import sqlite3
import subprocess
import time
from pathlib import Path

from report import Unmeasured

STORE = "/nix/store"
# What nix prints a hash of a store path with.
DIGITS = "0123456789abcdfghijklmnpqrsvwxyz"
CLOSURE = 100_000
ROOTS = 300_000
MIB = 1024 * 1024


class Builds:
    def __init__(self, work, binary, archive, rounds, report):
        self.work = work
        self.binary = binary
        self.archive = archive
        self.builds = max(25, 5 * rounds)
        self.tree_size = min(1024, max(64, 6 * rounds)) * MIB
        self.rounds = rounds
        self.report = report

    def sections(self):
        yield (f"Builds ({self.builds} trivial derivations in a row, one job)", True,
               [("trivial derivations", self.trivial_derivations)])
        yield (f"Archives (a tree of {self.tree_size // MIB} MiB, best of three)", True,
               [("survey", self.survey), ("restore", self.restore)])
        yield "The store", False, [("closure", self.closure), ("collector", self.collector)]

    # The tools.

    def ours(self, root, *arguments):
        return run([self.binary, *arguments], {"ANCHORHOLD_STORE": str(root)})

    def real_nix(self, root, program, *arguments):
        if not shutil.which(program):
            raise Unmeasured(f"{program} is not installed (Debian: nix-bin)")
        settings = "substituters =\nsandbox = true\nsandbox-fallback = false\nbuild-users-group =\n"
        return run([program, *arguments, "--store", str(root)], {"NIX_CONFIG": settings})

    def made_root(self, name):
        root = self.work / name
        root.mkdir(parents=True)
        return root

    # The cases.

    def trivial_derivations(self):
        busybox = shutil.which("busybox")
        if not busybox:
            raise Unmeasured("busybox is not installed (Debian: busybox-static)")
        took = {}
        for who in ("ours", "nix"):
            root = self.made_root(who)
            # In a directory: it takes the name that it is called by for an applet's.
            tools = self.work / "tools"
            tools.mkdir(exist_ok=True)
            shutil.copy(busybox, tools / "busybox")
            source = self.ours(root, "store", "add", tools).strip()
            files = []
            for i in range(self.builds):
                files.append(self.work / f"{i}.json")
                files[-1].write_text(json.dumps({
                    "name": f"trivial-{i}", "system": f"{os.uname().machine}-linux", "builder": f"{source}/busybox",
                    "args": ["sh", "-c", "echo $number > $out"], "env": {"number": str(i), "out": ""},
                    "inputDrvs": {}, "inputSrcs": [source], "outputs": {"out": {}},
                }))
            added = self.ours(root, "derivation", "add", *files).split()
            begun = time.monotonic()
            if who == "ours":
                self.ours(root, "build", "--jobs", "1", "--log-format", "raw", *added)
            else:
                self.real_nix(root, "nix-store", "--realise", "--max-jobs", "1", *added)
            took[who] = (time.monotonic() - begun) * 1000 / self.builds
        self.report.row("one of them, against a real Nix", took["ours"], took["nix"], 0.5)
        self.report.size("one of them", took["ours"], 5, "ms")

    def tree(self):
        """Mixed files: most are small, most bytes are in the large ones; some text, some noise, some links."""
        root = self.work / "tree"
        if root.exists():
            return root
        dice = random.Random(1)
        noise = dice.randbytes(4 * MIB)
        left, number = self.tree_size, 0
        while left > 0:
            directory = root / f"{number // 400}" / f"{number // 20}"
            directory.mkdir(parents=True, exist_ok=True)
            size = min(left, int(dice.choice((400, 4_000, 40_000, 400_000)) * (0.5 + dice.random())))
            at = dice.randrange(len(noise) - 1)
            content = (noise[at:at + size] if number % 2 else b"a line of text, and one more; " * (size // 30 + 1))[:size]
            Path(directory, f"f{number}").write_bytes(content)
            if number % 50 == 0:
                os.symlink(f"f{number}", directory / f"l{number}")
            left, number = left - max(size, 1), number + 1
        return root

    def need_archive(self):
        if self.archive is None:
            raise Unmeasured("needs the example `archive`: leave --binary out")

    def survey(self):
        self.need_archive()
        tree = self.tree()
        candidates = [f"{STORE}/{made_hash(i)}-input" for i in range(500)]
        ours = best(lambda: run([self.archive, "survey", tree, *(c.removeprefix(STORE + "/") for c in candidates)]))
        speed = run(["openssl", "speed", "-mr", "-elapsed", "-seconds", "2", "-bytes", "16384", "-evp", "sha256"])
        per_second = float(speed.strip().splitlines()[-1].split(":")[-1])
        size = len_of_archive(self.archive, tree)
        # A rate as time per MiB, so that smaller is better like everywhere else here.
        self.report.row("hash and references of a MiB, against openssl", ours * 1000 * MIB / size,
                        1000 * MIB / per_second, 1.25)
        peak = peak_memory([self.archive, "survey", tree])
        self.report.size("  peak memory", peak, 64, "MiB")

    def restore(self):
        self.need_archive()
        tree, nar = self.tree(), self.work / "tree.nar"
        with open(nar, "wb") as sink:
            subprocess.run([self.archive, "dump", tree], stdout=sink, stderr=subprocess.DEVNULL, check=True)

        def once(command, source):
            target = self.work / "restored"
            begun = time.monotonic()
            with open(source, "rb") as stdin:
                subprocess.run([*command, target], stdin=stdin, stderr=subprocess.DEVNULL, check=True)
            took = time.monotonic() - begun
            shutil.rmtree(target)
            return took
        ours = min(once([self.archive, "restore"], nar) for _ in range(3))
        copy = min(once(["cp", "-r", tree], "/dev/null") for _ in range(3))
        self.report.row("restore of the archive, against cp -r", ours * 1000, copy * 1000, 1.25)

    def closure(self):
        root = self.made_root("closure")
        names = self.fill(root, CLOSURE)
        took = best(lambda: self.ours(root, "store", "query", "--requisites", names[-1]))
        count = len(self.ours(root, "store", "query", "--requisites", names[-1]).split())
        self.report.size(f"closure of {count} paths", took, 1, "s")

    def collector(self):
        root = self.made_root("collector")
        names = self.fill(root, ROOTS)
        roots = root / "nix/var/nix/gcroots/many"
        roots.mkdir(parents=True)
        for number, name in enumerate(names):
            os.symlink(name, roots / str(number))
        took = best(lambda: self.ours(root, "store", "gc", "--print-dead"))
        self.report.size(f"gc --print-dead with {ROOTS} roots", took, 5, "s")

    def fill(self, root, count):
        """Registers `count` empty files, each of which needs a few of those before it, without building them."""
        self.ours(root, "store", "add", "/etc/hostname")
        store = root / "nix/store"
        names = [f"{STORE}/{made_hash(i)}-p{i}" for i in range(count)]
        for name in names:
            (store / name.removeprefix(STORE + "/")).touch()
        dice = random.Random(2)
        with sqlite3.connect(root / "nix/var/nix/db/db.sqlite") as database:
            database.executemany(
                "insert into ValidPaths (id, path, hash, registrationTime, narSize) values (?, ?, ?, 1, 120)",
                ((i + 2, name, "sha256:" + "0" * 64) for i, name in enumerate(names)))
            database.executemany("insert or ignore into Refs (referrer, reference) values (?, ?)",
                                 ((i + 2, reference + 1) for i in range(1, count)
                                  for reference in (i, *(dice.randrange(1, i + 1) for _ in range(3)))))
        database.close()
        return names


def made_hash(number):
    """A well-formed hash part that belongs to `number` alone."""
    digits = []
    for _ in range(32):
        number, rest = divmod(number, len(DIGITS))
        digits.append(DIGITS[rest])
    return "".join(reversed(digits))


def run(command, environment=None):
    done = subprocess.run(list(map(str, command)), env=os.environ | (environment or {}), stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()[-3:]
        raise Unmeasured(f"{Path(command[0]).name} ended with {done.returncode}: " + "; ".join(said))
    return done.stdout


def best(action, times=3):
    """Seconds of the fastest of a few runs: what the work takes when nothing else disturbs it."""
    took = []
    for _ in range(times):
        begun = time.monotonic()
        action()
        took.append(time.monotonic() - begun)
    return min(took)


def len_of_archive(archive, tree):
    return int(run([archive, "survey", tree]).split()[1])


def peak_memory(command):
    """The highest resident memory of one command, in MiB."""
    child = subprocess.Popen(list(map(str, command)), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        raise Unmeasured(f"{Path(command[0]).name} ended with {child.returncode}")
    return usage.ru_maxrss / 1024
