"""Debian packages and sources by apt, without touching what is installed here.

A private state directory holds apt's lists, cache and an empty list of installed packages, so that a closure is resolved
from nothing, by an ordinary user as well. Sources, keys and proxies are those that the machine is configured with.
"""

import fcntl
import os
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

# Lists younger than this are not fetched again.
FRESH_SECONDS = 3600


class AptError(Exception):
    """What apt could not do, in its own words."""


@dataclass
class File:
    """A file that apt has fetched, and the hash by which its signed index names it."""

    path: Path
    sha256: str


def with_sources(one_line):
    """The text of a `.list` file, with a deb-src line for every deb line."""
    lines = []
    for line in one_line.splitlines():
        entry = re.match(r"deb\s+(?!cdrom:)(\[[^]]*\]\s+)?(?!cdrom:)(\S.*)", line.split("#")[0].strip())
        if entry:
            options, rest = entry.group(1) or "", entry.group(2)
            lines += [f"deb {options}{rest}", f"deb-src {options}{rest}"]
    return "".join(line + "\n" for line in lines)


def with_sources_deb822(text):
    """The same for a `.sources` file."""
    stanzas = []
    text = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n\s*\n", text.strip("\n")):
        types = re.search(r"^Types:(.*)$", stanza, re.IGNORECASE | re.MULTILINE)
        disabled = re.search(r"^Enabled:\s*(no|false|without|off|disable)\b", stanza, re.IGNORECASE | re.MULTILINE)
        if types and "deb" in types.group(1).split() and not disabled:
            stanzas.append(stanza[:types.start()] + "Types: deb deb-src" + stanza[types.end():])
    return "\n\n".join(stanzas) + "\n"


class Apt:
    def __init__(self, directory, say):
        self.directory = Path(directory)
        self.say = say
        self.config = self.directory / "apt.conf"

    def prepare(self):
        """Writes the private configuration, and fetches the package lists unless they are fresh."""
        self.directory.mkdir(parents=True, exist_ok=True)
        # apt locks its lists and archives, but refuses instead of waiting. Two of us wait for one another.
        self.lock = open(self.directory / "lock", "w")
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        for name in ("state/lists/partial", "cache/archives/partial", "cache/none/partial", "sources.list.d"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        (self.directory / "status").write_text("")
        self.write_sources()
        self.config.write_text(f"""\
Dir::State "{self.directory}/state";
Dir::State::status "{self.directory}/status";
Dir::Cache "{self.directory}/cache";
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "{self.directory}/sources.list.d";
Acquire::Languages "none";
Acquire::ForceHash "SHA256";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
Acquire::Retries "3";
APT::Install-Recommends "false";
APT::Get::Assume-Yes "true";
// The directory may be closed to every other user, and with it to the one that apt would become.
APT::Sandbox::User "root";
// What the machine does after its own updates is not for these lists.
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
""")
        stamp = self.directory / "state/updated"
        if stamp.exists() and time.time() - stamp.stat().st_mtime < FRESH_SECONDS:
            return
        self.say("fetching the package lists")
        self.run("apt-get", "-qq", "update")
        stamp.touch()

    def write_sources(self):
        """The machine's own sources, each with its deb-src half."""
        found = dict(re.findall(r"(\w+)='(.*)'", self.run(
            "apt-config", "shell", "list", "Dir::Etc::sourcelist/f", "parts", "Dir::Etc::sourceparts/d", private=False)))
        parts = sorted(Path(found["parts"]).glob("*")) if found.get("parts") else []
        for old in (self.directory / "sources.list.d").iterdir():
            old.unlink()
        count = 0
        for path in [Path(found["list"])] * ("list" in found) + parts:
            change = {".list": with_sources, ".sources": with_sources_deb822}.get(path.suffix)
            if change is None or not path.is_file():
                continue
            text = change(path.read_text())
            if text.strip():
                (self.directory / "sources.list.d" / path.name).write_text(text)
                count += 1
        if not count:
            raise AptError("no package source is configured on this machine (/etc/apt/sources.list, sources.list.d)")

    def run(self, program, *arguments, private=True, cwd=None):
        configuration = ["-c", str(self.config)] if private else []
        done = subprocess.run([program, *configuration, *arguments], stdin=subprocess.DEVNULL, capture_output=True,
                              text=True, cwd=cwd, env={**os.environ, "LC_ALL": "C"})
        if done.returncode != 0:
            said = [line for line in done.stderr.splitlines() if line.startswith("E:")] or done.stderr.splitlines()[-3:]
            raise AptError(f"{program} {' '.join(arguments)}: " + ("; ".join(said) or f"status {done.returncode}"))
        return done.stdout

    @staticmethod
    def listed(uris):
        """What --print-uris prints: 'URI' NAME SIZE SHA256:HASH."""
        return re.findall(r"^'[^']*' (\S+) (\d+) SHA256:([0-9a-f]{64})$", uris, re.MULTILINE)

    def packages(self, names):
        """The closure of these packages, fetched. Nothing is unpacked, and nothing of the packages is run."""
        install = ("-qq", "install", "--no-install-recommends")
        # Packages that lie in apt's cache are not listed; so it is shown an empty one.
        empty = ("-o", f"Dir::Cache::archives={self.directory}/cache/none/")
        listed = self.listed(self.run("apt-get", *empty, *install, "--print-uris", *names))
        archives = self.directory / "cache/archives"
        size = sum(int(size) for _, size, _ in listed)
        self.say(f"fetching {len(listed)} package{'s' * (len(listed) != 1)}, {size / 1e6:.0f} MB")
        self.run("apt-get", *install, "--download-only", *names)
        files = [File(archives / name, digest) for name, _, digest in listed]
        missing = [file.path.name for file in files if not file.path.is_file()]
        if missing or not files:
            raise AptError(f"apt did not fetch {', '.join(missing) or ' '.join(names)}")
        return files

    def source(self, name):
        """The upstream tarball of a source package, fetched."""
        listed = self.listed(self.run("apt-get", "-qq", "source", "--print-uris", name))
        tarballs = [(file, digest) for file, _, digest in listed if re.search(r"\.orig\.tar\.\w+$", file)]
        if not tarballs:
            raise AptError(f"the source package {name} has no upstream tarball")
        directory = self.directory / "source"
        directory.mkdir(exist_ok=True)
        self.run("apt-get", "-qq", "source", "--download-only", name, cwd=directory)
        file, digest = tarballs[0]
        return File(directory / unquote(file), digest)
