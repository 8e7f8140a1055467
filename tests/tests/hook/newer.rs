//! A newer Nix.

use anchorhold_tests::newer_nix::in_newer_nix;

/// Newer Nixes take words behind the program.
const SETTINGS: &str = "build-hook = /tmp/anchorhold hook --option network none";

#[test]
fn builds_failures_and_fixed_outputs() {
    in_newer_nix(
        "",
        "",
        SETTINGS,
        r#"
        build 0 'id -u; cat /proc/self/status > $out'
        said "' on 'ssh-ng://localhost"
        said 1000
        grep -q 'NoNewPrivs:.1' $(tail -n 1 /tmp/said)
        ! grep -q "' to 'ssh-ng:" /tmp/said
        nix-store --verify --check-contents 2> /dev/null
        # A newer Nix takes every failure of a hook for the same.
        build 1 'echo the last words; exit 7'
        said 'exit code 7'
        said 'the last words'
        build 1 'sleep 1234' --timeout 1
        said 'timed out'
        build 1 'echo hello > $out' --arg more '{ outputHash = ""; outputHashAlgo = "sha256"; outputHashMode = "flat"; }'
        said 'hash mismatch in fixed-output derivation'
        got=$(sed -n 's/^ *got: *//p' /tmp/said)
        build 0 'echo hello > $out' --arg more "{ outputHash = \"$got\"; outputHashAlgo = \"sha256\"; outputHashMode = \"flat\"; }"
        build 0 'echo a > $out; echo $out > $dev' --argstr name many --arg more '{ outputs = [ "out" "dev" ]; }'
        "#,
    );
}

#[test]
fn an_untrusted_user_with_a_daemon() {
    in_newer_nix(
        "nixbld",
        "",
        SETTINGS,
        r#"
        NIX_CONFIG=$'system = anchorhold-only\nextra-platforms =' nix-daemon > /tmp/daemon 2>&1 &
        while [ ! -S /nix/var/nix/daemon-socket/socket ]; do sleep 0.05; done
        mkdir -m 777 /tmp/client
        printf 'experimental-features = nix-command\nsubstitute = false\n' > /tmp/client/nix.conf
        chmod 755 /tmp /tmp/conf
        as="setpriv --reuid alice --regid alice --clear-groups env NIX_REMOTE=daemon NIX_CONF_DIR=/tmp/client XDG_CACHE_HOME=/tmp/client HOME=/tmp/client TMPDIR=/tmp/client"
        build 0 'cat /proc/self/status > $out' --option sandbox false --builders ''
        said "' on 'ssh-ng://localhost"
        grep -q 'NoNewPrivs:.1' $(tail -n 1 /tmp/said)
        build 0 'cat /proc/self/status > $out' --argstr name local -j4 --arg more '{ preferLocalBuild = true; }'
        said "' on 'ssh-ng://localhost"
        "#,
    );
}
