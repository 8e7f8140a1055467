"""The two sides of the comparison: the same root, user, environment and directories, in a room and without one."""

import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import piece as pieces

HERE = Path(__file__).resolve().parent
ENVIRONMENT = {
    "HOME": "/build/home",
    "LANG": "C.UTF-8",
    "LOGNAME": "nixbld",
    "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
    "TERM": "dumb",
    "TMPDIR": "/tmp",
    "USER": "nixbld",
}
# How the script of a piece ended, as if it were one of its tests.
SCRIPT = "(the script itself)"
# What a room generates of /etc, and what belongs to a machine and not to its programs.
NOT_OF_PROGRAMS = {"group", "gshadow", "hostname", "hosts", "mtab", "nsswitch.conf", "passwd", "resolv.conf", "shadow", "subgid",
                   "subuid"}


class SideError(Exception):
    """The side that the other is measured against does not work."""


@dataclass
class Ran:
    """What one side has shown."""

    results: dict
    seconds: float
    log: Path

    def last_words(self):
        return "; ".join(self.log.read_text(errors="backslashreplace").splitlines()[-3:]) or "it said nothing"


class Without:
    """The root by unshare and pivot_root, as uid 1000, with the machine's /dev and network and with a /proc of its own. It has
    the host name of every room, because whether a machine can look up its own name is not the question here."""

    name = "without"

    def __init__(self, root):
        self.root = root

    def command(self, work, shown):
        (work / "new").mkdir()
        user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        return ["unshare", *user, "--mount", "--uts", "--pid", "--fork", "--kill-child", "--propagation", "private",
                HERE / "without", self.root, work / "new", *(f"{outside}={inside}" for inside, outside in shown.items()), "--"]


class With:
    """A room as it is by default: its profile is `build`, and no layer is left out."""

    name = "with"

    def __init__(self, root, binary):
        self.root = root
        self.binary = binary

    def command(self, work, shown):
        command = [self.binary, "run", "--no-usr", "--cwd", "/build"]
        for entry in sorted(self.root.iterdir()):
            if entry.name == "usr" or entry.is_symlink() and os.readlink(entry).removeprefix("/").startswith("usr/"):
                command += ["--ro", f"/{entry.name}={entry}"]
        for entry in sorted((self.root / "etc").iterdir()):
            if entry.name not in NOT_OF_PROGRAMS and not entry.name.endswith("-") and readable(entry):
                command += ["--ro", f"/etc/{entry.name}={entry}"]
        for inside, outside in shown.items():
            command += ["--rw" if inside == "/build" else "--ro", f"{inside}={outside}"]
        return [*command, "--"]


def readable(entry):
    # By anybody, not by who happens to start this: root would else show what its work cannot read on the other side.
    # A link, such as localtime, is made again.
    return entry.is_symlink() or entry.stat().st_mode & 0o004


def run(side, piece, work, sources, limit_seconds):
    """Runs a piece once on one side, in a new directory below `work`."""
    work.mkdir()
    build, scripts = work / "build", work / "compat"
    build.mkdir()
    # The ids of a room are its own and not known beforehand.
    build.chmod(0o777)
    scripts.mkdir()
    shutil.copyfile(piece.script, scripts / "piece")
    for directory in (work, scripts):
        directory.chmod(0o755)
    shown = {"/build": build, "/compat": scripts, "/sources": sources}
    command = [*side.command(work, shown), "/usr/bin/env", "--default-signal", "-i", *(f"{k}={v}" for k, v in ENVIRONMENT.items()), "/bin/bash",
               "-c", 'umask 022; mkdir -p "$HOME" /build/work && cd /build/work && exec /bin/bash /compat/piece']
    started = time.monotonic()
    with open(work / "results", "w") as results, open(work / "log", "w") as log:
        for file in (results, log):
            # So that `tee /dev/stderr` works without a room, too.
            os.fchmod(file.fileno(), 0o666)
        process = subprocess.Popen([str(part) for part in command], stdin=subprocess.DEVNULL, stdout=results, stderr=log,
                                   env=environment(), start_new_session=True)
        try:
            status = f"status-{process.wait(limit_seconds)}"
        except subprocess.TimeoutExpired:
            status = "out-of-time"
        finally:
            end(process)
    found = pieces.results((work / "results").read_text(errors="backslashreplace"))
    found[SCRIPT] = status
    ran = Ran(found, time.monotonic() - started, work / "log")
    if len(found) == 1 and side.name == "without":
        raise SideError(f"{piece.name} does not run without a room: {status}: {ran.last_words()}")
    return ran


def environment():
    kept = {name: os.environ[name] for name in ("HOME", "PATH", "XDG_RUNTIME_DIR") if name in os.environ}
    return {**kept, "ANCHORHOLD_COMPAT_USER": "root" if os.geteuid() == 0 else "other"}


def end(process):
    """Ends what we started. Whole, because the first process of a pid namespace takes all others with it."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()
