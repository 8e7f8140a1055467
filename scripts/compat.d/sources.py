"""What a piece works on, fetched before either side runs: both work without a network."""

import shutil
import subprocess
import tempfile
from pathlib import Path


class SourceError(Exception):
    """A source that could not be had, and why."""


def fetch(piece, cache, root, directory):
    """Lays the sources of a piece into `directory`, readable by everybody."""
    directory.mkdir()
    directory.chmod(0o755)
    for name in piece.sources:
        shutil.copyfile(cache.source(name), directory / f"{name}.tar")
    for crate in piece.crates:
        vendored = vendor(crate, cache.directory / "crates")
        shutil.copytree(vendored, directory / crate.partition("@")[0], symlinks=True)
    subprocess.run(["chmod", "-R", "go=rX,u+rwX", directory], check=True)
    return directory


def vendor(crate, crates):
    """A crate's own source with everything that its tests need in `vendor`; kept, so that the second time needs no network."""
    name, _, version = crate.partition("@")
    kept = crates / f"{name}-{version}"
    if kept.exists():
        return kept
    if not shutil.which("cargo"):
        raise SourceError(f"cargo is not in PATH; it fetches the crate {crate}")
    crates.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=crates) as scratch:
        part = Path(scratch)
        # cargo has no command that fetches one crate's source; as the dependency of an empty package it is vendored whole.
        outer = part / "outer"
        (outer / "src").mkdir(parents=True)
        (outer / "src/lib.rs").write_text("")
        (outer / "Cargo.toml").write_text('[package]\nname = "outer"\nversion = "0.0.0"\nedition = "2021"\n[dependencies]\n'
                                          f'{name} = "={version}"\n[workspace]\n')
        cargo(outer, "vendor", "--versioned-dirs", "vendor")
        inner = part / "inner"
        shutil.copytree(outer / f"vendor/{name}-{version}", inner)
        # It is vendored by itself now, so its list of checksums does not hold any more.
        (inner / ".cargo-checksum.json").unlink()
        config = cargo(inner, "vendor", "vendor")
        (inner / ".cargo").mkdir(exist_ok=True)
        (inner / ".cargo/config.toml").write_text(config)
        inner.chmod(0o755)
        inner.rename(kept)
    return kept


def cargo(directory, *arguments):
    done = subprocess.run(["cargo", *arguments], cwd=directory, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise SourceError(f"cargo {' '.join(arguments)}: {' '.join(done.stderr.splitlines()[-3:])}")
    return done.stdout
