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
        done = subprocess.run([self.binary, *map(str, arguments), "--store", str(self.root)], stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=stderr, text=True)
        if done.returncode != 0:
            raise StoreError(f"anchorhold {arguments[0]} ended with status {done.returncode}")
        return done.stdout

    def add(self, path, name):
        return self.run("store", "add", "--name", name, path).strip()

    def add_derivations(self, derivations):
        """Puts them into the store; their paths and those of their outputs, in order."""
        if not derivations:
            return []
        with tempfile.TemporaryDirectory() as directory:
            files = []
            for number, one in enumerate(derivations):
                files.append(Path(directory, f"{number}.json"))
                files[-1].write_text(json.dumps(one))
            paths = self.run("derivation", "add", *files).split()
        return [(path, output) for path in paths for output in self.run("store", "query", "--outputs", path).split()]

    def is_valid(self, path):
        if not (self.root / path.lstrip("/")).exists():
            return False
        try:
            self.run("store", "path-info", path, stderr=subprocess.DEVNULL)
        except StoreError:
            return False
        return True

    def build(self, path, *options):
        """Builds a derivation; progress is shown on standard error. What it printed."""
        return self.run("build", path, *options)

    def keep(self, name, path):
        """Makes a root, so that the collector leaves the path alone."""
        link = self.root / "nix/var/nix/gcroots" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        aside = link.with_name(f"{name}.{os.getpid()}")
        aside.symlink_to(path)
        aside.replace(link)
