"""A store, through the command line of anchorhold as a person would use it."""

import base64
import json
import os
import platform
import re
import subprocess
import tempfile
from pathlib import Path


class StoreError(Exception):
    """What anchorhold could not do. It has said why itself."""


class NoProgram(StoreError):
    """There is no anchorhold where it should be."""


def system():
    return f"{platform.machine()}-linux"


def fetched(file):
    """The derivation of a file of this machine whose hash is known: a fixed output."""
    # A store path allows no ~ and no %.
    name = re.sub(r"[^0-9a-zA-Z+._?=-]", "-", re.sub(r"%3a", "-", file.path.name))
    return {
        "version": 4,
        "name": name,
        "system": "builtin",
        "builder": "builtin:fetchurl",
        "args": [],
        "env": {"url": f"file://{file.path}"},
        "inputs": {"srcs": [], "drvs": {}},
        "outputs": {"out": {"method": "flat", "hash": "sha256-" + base64.b64encode(bytes.fromhex(file.sha256)).decode()}},
    }


def derivation(name, builder, args, env, sources=(), derivations=()):
    """An input-addressed derivation with one output. Inputs are whole store paths."""
    base = os.path.basename
    return {
        "version": 4,
        "name": name,
        "system": system(),
        "builder": builder,
        "args": list(args),
        "env": env,
        "inputs": {
            "srcs": [base(path) for path in sources],
            "drvs": {base(path): {"outputs": ["out"], "dynamicOutputs": {}} for path in derivations},
        },
        "outputs": {"out": {}},
    }


class Store:
    def __init__(self, binary, root):
        self.binary = str(binary)
        self.root = Path(root)

    def run(self, *arguments, stderr=None):
        try:
            done = subprocess.run([self.binary, *map(str, arguments), "--store", str(self.root)],
                                  stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, text=True)
        except OSError as why:
            raise NoProgram(f"running anchorhold: {why}; name the program with --binary or ANCHORHOLD_BIN") from None
        if done.returncode != 0:
            raise StoreError(f"anchorhold {arguments[0]} ended with status {done.returncode}")
        return done.stdout

    def add(self, path, name):
        return self.run("store", "add", "--name", name, path).strip()

    def add_derivations(self, derivations):
        """Puts them into the store; their paths, in order."""
        with tempfile.TemporaryDirectory() as directory:
            files = [Path(directory, f"{number}.json") for number in range(len(derivations))]
            for file, one in zip(files, derivations):
                file.write_text(json.dumps(one))
            return self.run("derivation", "add", *files).split()

    def outputs(self, path):
        """The output paths of a derivation."""
        return self.run("store", "query", "--outputs", path).split()

    def build(self, path, *options):
        """Builds a derivation. Progress is shown on standard error."""
        self.run("build", path, *options)

    def keep(self, name, path):
        """Makes a root of this name, so that the collector leaves the path alone."""
        link = self.root_link(name)
        link.parent.mkdir(parents=True, exist_ok=True)
        aside = link.with_name(f"{name}.{os.getpid()}")
        aside.symlink_to(path)
        aside.replace(link)

    def kept(self, name):
        """What the root of this name keeps, if it is there and valid."""
        link = self.root_link(name)
        if not link.is_symlink():
            return None
        path = str(link.readlink())
        return path if self.is_valid(path) else None

    def is_valid(self, path):
        try:
            self.run("store", "path-info", path, stderr=subprocess.DEVNULL)
        except NoProgram:
            raise
        except StoreError:
            return False
        return True

    def root_link(self, name):
        return self.root / "nix/var/nix/gcroots" / name
