"""The root that both sides see: a Debian of the machine's own release with every tool that the work needs.

mmdebstrap makes it, from the package sources that this machine has for its release. Maintainer scripts run in it, and nothing is
installed on the machine: a mmdebstrap that is not there is fetched and run from where it was unpacked.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from debian import Apt, AptError

# Counted up when the root is made in another way: one of another edition is made anew.
EDITION = 1
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
STAMP = "etc/anchorhold-compat"
# What enters the root.
NEEDED = ("mount", "util-linux")
# Who the work runs as on both sides: the line of a room's own /etc/passwd.
USER = "nixbld:x:1000:100:Nix build user:/home/nixbld:/noshell"
# Nobody reads them here, and they are a third of all files.
LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*")


class RootError(Exception):
    """The root could not be made, and why."""


def system_cache():
    """Where root keeps it: any user can walk there."""
    return Path("/var/cache/anchorhold/compat")


def own_cache():
    # A relative directory in this variable counts for nothing (XDG base directory specification).
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if home.startswith("/") else Path.home() / ".cache") / "anchorhold/compat"


class Cache:
    """The directory with the root, with apt's private state, and with the sources."""

    def __init__(self, directory, say):
        self.directory = Path(directory)
        self.say = say
        self.apt = Apt(self.directory / "apt", say)
        self.prepared = False

    def prepare(self):
        if not self.prepared:
            self.apt.prepare()
            self.prepared = True

    def free(self):
        """Lets others at apt's private state while this one works on."""
        self.apt.lock.close()
        self.prepared = False

    def lock(self):
        self.directory.mkdir(parents=True, exist_ok=True)
        self.held = open(self.directory / "lock", "w")
        fcntl.flock(self.held, fcntl.LOCK_EX)

    def root(self, packages):
        """The root with these packages; made, if there is none with exactly these."""
        edition = key(packages)
        root = self.directory / "root"
        if is_made(root, edition):
            return root
        self.lock()
        if not is_made(root, edition):
            self.make(root, sorted({*NEEDED, *packages}), edition)
        return root

    def make(self, root, packages, edition):
        self.prepare()
        part = self.directory / "root.part"
        remove(part)
        lines = self.release()
        arguments = ["--variant=apt", '--aptopt=APT::Install-Recommends "false"', '--aptopt=Acquire::Retries "3"',
                     *(f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT),
                     # In the hook, because its files may be of ids that are not ours.
                     f"--customize-hook=echo '{USER}' >> \"$1/etc/passwd\"; echo {edition} > \"$1/{STAMP}\"",
                     f"--include={','.join(packages)}", self.codename, str(part), "-"]
        self.say(f"making a Debian {self.codename} with {len(packages)} packages and what they need in {root}: "
                 "some minutes, once")
        log = self.directory / "root.log"
        with open(log, "w") as output:
            done = subprocess.run(["mmdebstrap", *arguments], input="".join(f"{line}\n" for line in lines), text=True,
                                  stdout=output, stderr=output, env=self.with_mmdebstrap())
        if done.returncode != 0:
            remove(part)
            said = [line for line in log.read_text().splitlines() if line.startswith("E:")][-3:]
            raise RootError(f"mmdebstrap ended with status {done.returncode}: {'; '.join(said)}; {log} has the rest")
        self.free()
        remove(root)
        part.rename(root)

    def release(self):
        """The one-line sources of this machine's own release, by what their signed indexes say, not by how they are written."""
        self.codename = os_release().get("VERSION_CODENAME", "")
        if os_release().get("ID") != "debian" or not self.codename:
            raise RootError("this is no Debian release with a name: name a root of your own with --root")
        targets = self.apt.run("apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)",
                               "Created-By: Packages", "Origin: Debian")
        suites = (self.codename, f"{self.codename}-updates", f"{self.codename}-security")
        lines = [f"deb [signed-by={KEYRING}] {target}" for target in dict.fromkeys(targets.splitlines())
                 if target.split()[1] in suites]
        if not lines:
            raise RootError(f"no package source of this machine has Debian {self.codename}")
        return lines

    def with_mmdebstrap(self):
        """An environment in which mmdebstrap is found."""
        if shutil.which("mmdebstrap"):
            return dict(os.environ)
        tools = self.directory / "tools"
        if not (tools / "usr/bin/mmdebstrap").exists():
            tools.mkdir(exist_ok=True)
            self.apt.run("apt-get", "-qq", "download", "mmdebstrap", cwd=tools)
            package = sorted(tools.glob("mmdebstrap_*.deb"))[-1]
            subprocess.run(["dpkg-deb", "--extract", package, tools], check=True)
        return {**os.environ, "PATH": f"{tools}/usr/bin:{os.environ.get('PATH', os.defpath)}"}

    def source(self, name):
        """The upstream tarball of a Debian source package; kept, so that the second time needs no network."""
        kept = self.directory / "sources" / f"{name}.tar"
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            self.prepare()
            try:
                tarball = self.apt.source(name).path
            except AptError:
                # Some mirrors carry the programs of security updates, but not their sources.
                tarball = self.apt.source(f"{name}/{os_release()['VERSION_CODENAME']}").path
            self.free()
            part = kept.with_suffix(f".{os.getpid()}")
            shutil.copyfile(tarball, part)
            part.rename(kept)
        return kept


def os_release():
    return dict(line.replace('"', "").split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)


def key(packages):
    return hashlib.sha256(f"{EDITION} {' '.join(sorted({*NEEDED, *packages}))}".encode()).hexdigest()


def is_made(root, edition):
    try:
        return (root / STAMP).read_text().strip() == edition
    except OSError:
        return False


def remove(tree):
    """A tree with whatever a program has left in it; of another user's ids, too, if mmdebstrap made it in a namespace."""
    if not tree.exists():
        return
    if os.geteuid() == 0:
        shutil.rmtree(tree)
        return
    subprocess.run(["chmod", "-R", "u+rwX", tree], stderr=subprocess.DEVNULL)
    shutil.rmtree(tree, ignore_errors=True)
    if tree.exists():
        subprocess.run(["unshare", "--map-root-user", "--map-auto", "rm", "-rf", tree], check=True)
