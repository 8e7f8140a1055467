"""What the doors for a real Nix cost, against the same Nix alone: Debian's nix-bin, and a newer one for external builders.

Every case runs the two by turns, in stores of their own.
"""

import os
import shlex
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from report import Unmeasured

BENCH = Path(__file__).resolve().parent
CLOSURE = 500
MIB = 1024 * 1024
# Runs that fill caches and are not counted.
WARM = 2

# Derivations that need a shell and, if they say so, files that hang together by their references.
EXPRESSION = """
{ count, closure, name }:
let
  tools = builtins.storePath (builtins.getEnv "TOOLS");
  files = builtins.foldl' (below: number: builtins.toFile "file-${toString number}" "${below}\\n") "end"
    (builtins.genList (number: number) closure);
in builtins.genList (number: derivation {
  name = "${name}-${toString number}";
  system = builtins.currentSystem;
  builder = "${tools}/bin/sh";
  args = [ "-c" "echo > $out" ];
  input = files;
}) count
"""

SETTINGS = """substituters =
substitute = false
experimental-features = nix-command
build-users-group =
sandbox = true
sandbox-fallback = false
store = {store}
"""

PLAIN = """#!/bin/sh
{variables} exec {words} "$@"
"""

# Runs a program and writes down the most memory that it ever had. A client kills what it has started when it needs it no
# more; the program itself ends at the end of its input, and is waited for by somebody else.
WEIGHED = """#!/usr/bin/env python3
import os, resource, subprocess, sys
watcher = os.fork()
if watcher == 0:
    os.setsid()
    subprocess.call({command} + sys.argv[1:], env=os.environ | {environment})
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    open({note!r}, "a").write(str(peak) + "\\n")
    os._exit(0)
os.waitpid(watcher, 0)
"""


class Doors:
    def __init__(self, work, binary, rounds, report, refusal):
        self.work = work
        self.binary = binary
        self.times = max(5, rounds // 4)
        self.size = min(2048, max(128, 12 * rounds)) * MIB
        self.report = report
        self.refusal = refusal

    def sections(self):
        yield (f"Doors of a real Nix (median of {self.times})", True,
               [("through attach", self.through_attach), ("through the hook", self.through_hook),
                ("on a remote builder", self.on_a_remote_builder)])
        yield (f"A path of {self.size // MIB} MiB through the server (best of three)", True,
               [("out of the server", self.out_of_the_server), ("into the server", self.into_the_server)])

    # The cases.

    def through_attach(self):
        """A newer Nix, by turns with anchorhold as its external builder and with its own sandbox."""
        self.need_room()
        if os.geteuid() != 0:
            raise Unmeasured("Nix has build users only as root")
        with self.place() as place:
            done = subprocess.run([BENCH.parent / "newer-nix", "--bind", f"{place}:/nix",
                                   "--bind", f"{self.binary}:/tmp/anchorhold", "--bind",
                                   f"{BENCH / 'through-attach'}:/tmp/through-attach",
                                   "run", "/tmp/through-attach", str(self.times)],
                                  stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode != 0:
            raise Unmeasured("; ".join((done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-3:]))
        times = {"ours": [], "nix": []}
        for line in done.stdout.splitlines():
            name, microseconds = line.split()
            times[name].append(int(microseconds) / 1000)
        ours, nix = statistics.median(times["ours"]), statistics.median(times["nix"])
        self.report.row("a trivial derivation through attach, against Nix", ours, nix, 1)

    def through_hook(self):
        """A Nix that asks our hook, and one as it comes."""
        self.need_room()
        with self.place() as place:
            nix = Nix(place / "store")
            os.symlink(self.binary, place / "anchorhold-hook")
            # The name says what it is to do; a Nix of this age has no place for words behind the program.
            asks = ["--option", "build-hook", str(place / "anchorhold-hook")]
            derivations = nix.derivations(2 * (self.times + WARM), 0)

            def build(options):
                said = nix.run("nix-store", "--realise", derivations.pop(), *options).stderr
                if ("' on 'ssh-ng://localhost" in said) != bool(options):
                    raise Unmeasured("the build was not where it should be: " + " ".join(said.split())[-300:])
            ours, stock = self.by_turns(lambda: build(asks), lambda: build([]))
        self.report.row("a trivial derivation through the hook, against Nix", ours, stock)
        self.report.size("  what the hook adds", ours - stock, 40, "ms")

    def on_a_remote_builder(self):
        """A build whose inputs are at the other end already; that end is ours, or Nix's own daemon."""
        self.need_room()
        with self.place() as place:
            nix = Nix(place / "near")
            derivations = nix.derivations(2 * (self.times + WARM), CLOSURE)
            inputs = nix.run("nix-store", "--query", "--references", derivations[0]).stdout.split()
            closure = nix.run("nix-store", "--query", "--requisites", *inputs).stdout.split()
            sides = self.servers(place)
            for store, _ in sides.values():
                nix.run("nix", "copy", "--no-check-sigs", "--to", str(store), *inputs)

            def build(side):
                _, program = sides[side]
                machine = f"ssh-ng://localhost?remote-program={program} {os.uname().machine}-linux - 1 1"
                said = nix.run("nix-store", "--realise", derivations.pop(), "--max-jobs", "0",
                               "--option", "builders", machine).stderr
                if "copying 0 paths" not in said or "' to 'ssh-ng:" in said:
                    raise Unmeasured("inputs were copied: " + " ".join(said.split())[-300:])
            ours, theirs = self.by_turns(lambda: build("ours"), lambda: build("nix"))
        self.report.row(f"a remote build with {len(closure)} inputs, against nix-daemon", ours, theirs, 1.1)

    def out_of_the_server(self):
        self.large("out of it, against nix-daemon", False)

    def into_the_server(self):
        self.large("into it, against nix-daemon", True)

    def large(self, title, into):
        """One large path, from or to a server that is ours or Nix's own daemon."""
        self.need_room()
        with self.place(3 * self.size) as place:
            near = place / "near"
            from_here = Nix(near)
            path = self.large_path(from_here, place)
            # What is sent away comes from one store for both: they have the same form.
            sides = self.servers(place, None if into else near, WEIGHED)
            took = {"ours": [], "nix": []}
            for _ in range(3):
                for side, (store, program) in sides.items():
                    uri = f"ssh-ng://localhost?remote-program={program}"
                    target = store if into else place / "target"
                    ends = ["--to", uri] if into else ["--from", uri, "--to", str(target)]
                    begun = time.monotonic()
                    from_here.run("nix", "copy", "--no-check-sigs", *ends, path)
                    took[side].append(time.monotonic() - begun)
                    if not (target / path.lstrip("/")).exists():
                        raise Unmeasured("the path did not arrive")
                    remove(target)
            peaks = noted(place / "ours.memory", 3)
        # As time per GiB, so that smaller is better like everywhere else here.
        ours, theirs = (min(took[side]) * 1000 * 1024 * MIB / self.size for side in ("ours", "nix"))
        self.report.row(title + ", a GiB", ours, theirs, 1.25)
        self.report.size("  peak memory of the server", max(peaks), 64, "MiB")

    # What they need.

    def need_room(self):
        if self.refusal:
            raise Unmeasured(self.refusal)

    def place(self, size=0):
        """A directory for stores. On a disk, both would mostly be waiting for it, which only hides what differs."""
        directory = self.work.parent
        if os.path.isdir("/dev/shm"):
            there = os.statvfs("/dev/shm")
            free = min(there.f_bavail * there.f_frsize, available_memory() // 2)
            if free > size:
                directory = "/dev/shm"
        return Place(directory)

    def by_turns(self, ours, theirs):
        """The median of milliseconds of each."""
        took = ([], [])
        for number in range(self.times + WARM):
            pair = [(ours, took[0]), (theirs, took[1])]
            for action, list_of in pair if number % 2 else reversed(pair):
                begun = time.monotonic()
                action()
                if number >= WARM:
                    list_of.append((time.monotonic() - begun) * 1000)
        return tuple(map(statistics.median, took))

    def servers(self, place, one_store=None, template=PLAIN):
        """By name of the side: the store at the other end, and the program that serves it."""
        sides = {}
        for side in ("ours", "nix"):
            store = one_store or place / f"far-{side}"
            if side == "ours":
                command = [str(self.binary), "store-server", "--store", str(store)]
                environment = {}
            else:
                command = [shutil.which("nix-daemon") or "nix-daemon"]
                environment = {"NIX_CONF_DIR": str(write_settings(place / "conf-far", store))}
            program = place / f"serve-{side}"
            program.write_text(template.format(
                command=command, environment=environment, note=str(place / f"{side}.memory"), words=shlex.join(command),
                variables=" ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items())))
            program.chmod(0o755)
            sides[side] = (store, program)
        return sides

    def large_path(self, nix, place):
        noise = os.urandom(4 * MIB)
        with open(place / "large", "wb") as file:
            for _ in range(self.size // len(noise)):
                file.write(noise)
        path = nix.run("nix-store", "--add", str(place / "large")).stdout.strip()
        (place / "large").unlink()
        return path


class Place:
    """A directory that is gone in the end, whatever modes are in it."""

    def __init__(self, directory):
        self.path = Path(tempfile.mkdtemp(prefix="anchorhold-bench.", dir=directory))
        self.path.chmod(0o755)

    def __enter__(self):
        return self.path

    def __exit__(self, *_):
        remove(self.path)


class Nix:
    """This machine's Nix, with a store of its own below a directory."""

    def __init__(self, store):
        for program in ("nix", "nix-store", "nix-daemon", "busybox"):
            if not shutil.which(program):
                raise Unmeasured(f"{program} is not installed (Debian: nix-bin, busybox-static)")
        self.store = store
        self.home = store.with_name(store.name + "-home")
        self.home.mkdir()
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("NIX_")}
        self.environment |= {"NIX_CONF_DIR": str(write_settings(self.home / "conf", store)), "HOME": str(self.home),
                             "XDG_CACHE_HOME": str(self.home), "TMPDIR": str(self.home)}

    def run(self, program, *arguments):
        done = subprocess.run([program, *arguments], env=self.environment, stdin=subprocess.DEVNULL,
                              capture_output=True, text=True)
        if done.returncode != 0:
            raise Unmeasured(f"{program} ended with {done.returncode}: "
                             + "; ".join(done.stderr.strip().splitlines()[-3:]))
        return done

    def derivations(self, count, closure):
        """Store paths of different trivial derivations with this many inputs."""
        tools = self.home / "tools/bin"
        tools.mkdir(parents=True)
        shutil.copy(shutil.which("busybox"), tools / "busybox")
        os.symlink("busybox", tools / "sh")
        self.environment["TOOLS"] = self.run("nix-store", "--add", str(tools.parent)).stdout.strip()
        expression = self.home / "trivial.nix"
        expression.write_text(EXPRESSION)
        return self.run("nix-instantiate", str(expression), "--arg", "count", str(count), "--arg", "closure",
                        str(closure), "--argstr", "name", "trivial").stdout.split()


def noted(file, count):
    """The MiB in a file, once they are all there."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        lines = file.read_text().split() if file.exists() else []
        if len(lines) >= count:
            return [int(line) / 1024 for line in lines]
        time.sleep(0.05)
    raise Unmeasured("a server did not end")


def write_settings(directory, store):
    directory.mkdir(parents=True)
    (directory / "nix.conf").write_text(SETTINGS.format(store=store))
    return directory


def remove(tree):
    """Removes a tree whose directories may be read-only."""
    for directory, _, _ in os.walk(tree):
        os.chmod(directory, 0o755)
    shutil.rmtree(tree)


def available_memory():
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0
