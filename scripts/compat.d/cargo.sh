#!/bin/bash
# title: cargo test of the crate nix: sockets, processes, signals, terminals, ptrace, messages
# packages: cargo-web rustc-web build-essential
# crates: nix@0.26.4
set -euo pipefail

cp -r /sources/nix nix
cd nix
export RUSTFLAGS='--cap-lints=allow' CARGO_NET_OFFLINE=true
cargo --version >&2
(cargo test --all-features --tests --no-fail-fast -j2 2>&1 || true) | tee /dev/stderr |
    awk '# A program with a harness of its own may leave its line open.
        /^test .* \.\.\. .* Running / { print "ran", binary, $2 }
        / Running / { sub(/^.* Running /, "Running "); binary = $2; if (binary == "unittests") binary = $3 }
        /^test .* \.\.\. / { result = $NF; name = $2
            if (result !~ /^(ok|FAILED|ignored)$/) result = "ok"; print tolower(result), binary, name }'
