"""What machines cost: saving and reviving them, against the way of 2014, and the paths by which a guest reads the store.

All under emulation, so that hosts can be compared. Needs what scripts/guest-kernel and scripts/guest-images make.
"""

import itertools
import json
import os
import shutil
import statistics
import subprocess
import time
from pathlib import Path

from report import Unmeasured

MIB = 1024 * 1024
MEMORY = 1024
SMALL_MEMORY = 256
# What a guest has in its memory, in MiB: half noise, half text.
FILL = 384
GUESTS = 8
SMALL_FILES = 5000
LARGE = 200 * MIB
# By each path; the least time of them counts.
READ_ROUNDS = 2
# What all paths are compared with, as the example calls it.
BASE = "9p, all kept"
# Seconds of the guest's own clock, around the same as the example does.
SMB_SCRIPT = """t() { read now rest </proc/uptime; echo measured $now; }
small() { find . -type f ! -name large | xargs cat >/dev/null; }
cd $0; t; small; t; small; t; find . -size +99999999; t; cat large >/dev/null; t; cat large >/dev/null; t"""


class Machines:
    def __init__(self, work, binary, examples, rounds, report):
        self.work = work
        self.binary = binary
        self.examples = examples
        self.rounds = max(3, min(10, rounds // 20))
        self.report = report
        work.mkdir(parents=True)

    def sections(self):
        yield (f"A guest of {MEMORY} MiB, saved and revived (median of {self.rounds})", True,
               [("saved guest", self.saved_guest)])
        yield f"The controller of a pair, started (median of {self.rounds})", True, [("controller", self.controller)]
        yield f"A pair, revived (median of {self.rounds})", True, [("pair", self.pair)]
        yield (f"A guest without a controller, revived (median of {self.rounds})", True,
               [("guest without a controller", self.direct)])
        yield (f"Store reads in a guest ({SMALL_FILES} small files, one of {LARGE // MIB} MiB; against 9p that keeps all)",
               True, [("store reads", self.store_reads)])

    # What is there.

    def cache(self, name, variable):
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        places = [os.environ.get(variable), Path(home) / "anchorhold" / name, f"/var/cache/anchorhold/{name}"]
        found = next((Path(place) for place in places if place and Path(place).is_dir()), None)
        if not found:
            raise Unmeasured(f"there is no {name}: scripts/{name} makes it")
        return found

    def vm(self, *words):
        images = self.cache("guest-images", "ANCHORHOLD_GUEST_IMAGES")
        return [str(self.binary), "vm", words[0], "--option", "accel", "tcg", "--option", "vm-cache",
                str(self.work / "stages"), "--option", "vm-images", str(images), *map(str, words[1:])]

    def example(self, name, directory, *words):
        """What this example of the library's prints, which works in a directory of its own. Words stand before that."""
        program = self.examples / name if self.examples else None
        if not program or not program.is_file():
            raise Unmeasured(f"the example `{name}` is not built (no --binary, or build it beside the binary)")
        kernel = self.cache("guest-kernel", "ANCHORHOLD_GUEST_KERNEL")
        agent = self.binary.with_name("anchorhold-agent")
        if not agent.is_file():
            raise Unmeasured(f"there is no {agent}")
        directory = self.work / directory
        directory.mkdir()
        done = subprocess.run([program, kernel, agent, *map(str, words), directory], stdin=subprocess.DEVNULL,
                              capture_output=True, text=True)
        shutil.rmtree(directory)
        if done.returncode != 0:
            raise Unmeasured(done.stderr.strip()[-300:])
        return json.loads(done.stdout)

    # The cases.

    def measured(self, memory, fill, guests):
        return self.example("template", f"template-{memory}", memory, fill, guests, self.rounds)

    def saved_guest(self):
        big = self.measured(MEMORY, FILL, GUESTS)
        small = self.measured(SMALL_MEMORY, FILL // 6, 1)
        running, answer = statistics.median(big["running"]), statistics.median(big["answer"])
        self.report.row("revived and running, against gzip", running, statistics.median(big["gzip-running"]), 1 / 50)
        self.report.row(f"  against a guest of {SMALL_MEMORY} MiB", running, statistics.median(small["running"]))
        self.report.size("revived and answering", answer, 250, "ms")
        self.report.row("saved, digest and all, against gzip", big["save"], big["gzip-save"])
        self.report.size("  beyond one write of the memory", max(0, big["save"] - big["write"]), 100, "ms")
        self.report.row(f"{GUESTS} guests revived, all answering, against one", big["crowd"], answer)
        self.report.size(f"  proportional memory of each of {GUESTS}", max(big["proportional"]) / 1024, 40, "MiB")
        self.report.fact("  size on the disk", f"{big['ram'] / MIB:.0f} MiB of memory, {big['device'] / 1024:.0f} KiB "
                         f"of devices; state.gz {big['gzip-state'] / MIB:.0f} MiB")
        self.report.fact("  initramfs, not packed", f"{big['initramfs'] / MIB:.1f} MiB")

    def controller(self):
        images = self.cache("guest-images", "ANCHORHOLD_GUEST_IMAGES")
        found = self.example("controller", "controller", images, self.rounds)
        ready, asked, kernel = (statistics.median(found[name]) for name in ("ready", "asked", "kernel"))
        beyond = statistics.median([one + other for one, other in zip(found["ready"], found["asked"])])
        self.report.size("until the guest's SSH is asked, beyond the kernel's own start", beyond, 1500, "ms")
        self.report.fact("  of the guest's time", f"kernel {kernel:.0f} ms, root and network {ready:.0f} ms, Samba and keys "
                         f"{asked:.0f} ms; initramfs {found['initramfs'] / MIB:.1f} MiB, not packed")

    def pair(self):
        took = self.revived("pair", 1500)
        images = {}
        for path in (self.work / "stages" / "files").iterdir():
            images[path.name.rsplit("-", 1)[0]] = path.stat().st_size / MIB
        self.report.fact("installed", f"{took['install'] / 1000:.1f} s")
        self.report.fact("started and suspended", f"{took['suspend'] / 1000:.1f} s")
        self.report.fact("initramfs, not packed", ", ".join(
            f"{name} {size:.1f} MiB" for name, size in sorted(images.items())))

    def direct(self):
        if not Path("/usr/sbin/smbd").exists():
            raise Unmeasured("there is no smbd here")
        took = self.revived("direct", 800)
        self.report.fact("started and suspended", f"{took['suspend'] / 1000:.1f} s")

    def revived(self, topology, most):
        topology = ["--option", "vm-topology", topology]
        took = {}
        for stage in ("install", "suspend"):
            took[stage] = timed(self.vm(stage, *topology))
        answers, ends = [], []
        command = self.vm("revive", *topology, "--only-saved", "--", "/bin/echo", "here")
        for _ in range(self.rounds):
            begun = time.monotonic()
            with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                  stderr=subprocess.DEVNULL) as child:
                said = child.stdout.readline()
                answers.append((time.monotonic() - begun) * 1000)
                if said != b"here\n" or child.wait() != 0:
                    raise Unmeasured("the revived guest did not run its command")
            ends.append((time.monotonic() - begun) * 1000)
        answer, end = statistics.median(answers), statistics.median(ends)
        self.report.size("to the status of a trivial command, shares given back", end, most, "ms")
        self.report.row("  to its output, against that", answer, end)
        self.report.row("  against starting and saving", end, took["suspend"])
        return took

    def store_reads(self):
        tree = self.work / "tree"
        for number in range(SMALL_FILES):
            path = tree / f"{number % 50:02}" / f"{number}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(os.urandom(64) * 64)
        with open(tree / "large", "wb") as large:
            for _ in range(LARGE // MIB):
                large.write(os.urandom(MIB // 2) + bytes(MIB // 2))
        tree.chmod(0o755)
        busybox = shutil.which("busybox", path=os.environ["PATH"] + ":/bin:/usr/bin")
        if not busybox:
            raise Unmeasured("there is no busybox, with which the guest reads")
        found = self.example("reads", "reads", busybox, tree, READ_ROUNDS)
        for form in ("squashfs", "erofs"):
            if f"{form}, made" in found:
                self.report.fact(f"{form}, made on the host", f"{found.pop(f'{form}, made') / 1000:.2f} s")
        for name, words in (("SMB through the controller", self.by_controller), ("SMB from beside QEMU", self.from_beside)):
            try:
                found[name] = self.over_smb(words(tree))
            except Unmeasured as why:
                self.report.unmeasured(name, why)
        columns = ("small files", "again", "looked at", "the large file", "again")
        for number, column in enumerate(columns):
            for name, times in found.items():
                if number < len(times):
                    self.report.row(f"{name}: {column}", times[number], found[BASE][number])

    def over_smb(self, command):
        """Of a guest that has mounted the share a moment ago, by its own clock."""
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        words = [line.split()[-1] for line in (done.stdout + done.stderr).splitlines() if "measured" in line]
        if done.returncode != 0 or len(words) != 6:
            raise Unmeasured((done.stderr or done.stdout).strip()[-300:])
        marks = [float(word) * 1000 for word in words]
        return [after - before for before, after in itertools.pairwise(marks)]

    def by_controller(self, tree):
        return self.vm("revive", "--store", tree, "--", "/bin/sh", "-c", SMB_SCRIPT, "/nix/store")

    def from_beside(self, tree):
        """A build: only those are served so."""
        if not shutil.which("smbd", path=os.environ["PATH"] + ":/usr/sbin"):
            raise Unmeasured("there is no smbd here")
        store = ["--store", str(self.work / "store")]
        tools = self.work / "tools"
        tools.mkdir()
        shutil.copy("/bin/busybox", tools / "busybox")
        added = [output_of([str(self.binary), "store", *store, "add", str(path)]) for path in (tree, tools)]
        derivation = self.work / "direct.json"
        derivation.write_text(json.dumps({
            "name": "direct", "system": f"{os.uname().machine}-linux", "builder": f"{added[1]}/busybox", "inputSrcs": added,
            "args": ["sh", "-ec", SMB_SCRIPT + "; echo >$out", added[0]], "inputDrvs": {}, "outputs": {"out": {}},
            "env": {"requiredSystemFeatures": "windows-vm", "PATH": "/bin"}}))
        made = output_of([str(self.binary), "derivation", "add", *store, str(derivation)])
        images = self.cache("guest-images", "ANCHORHOLD_GUEST_IMAGES")
        return [str(self.binary), "build", *store, "--log-format", "raw", "--option", "accel", "tcg", "--option",
                "vm-guest", "standin", "--option", "vm-images", str(images), "--option", "vm-topology", "direct", made]


def output_of(command):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise Unmeasured(done.stderr.strip()[-300:])
    return done.stdout.strip()


def timed(command):
    begun = time.monotonic()
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise Unmeasured(done.stderr.strip()[-300:])
    return (time.monotonic() - begun) * 1000
