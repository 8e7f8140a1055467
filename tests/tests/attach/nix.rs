//! A real Nix that has external builders.

use anchorhold_tests::newer_nix::{NewerNix, groups, in_newer_nix};
use anchorhold_tests::skip;

const FEATURES: &str = "external-builders";
const SETTINGS: &str = r#"sandbox = true
external-builders = [{"systems":["x86_64-linux","aarch64-linux"],"program":"/tmp/anchorhold","args":["attach","--option","network","none"]}]"#;

/// Does it for root without build users, or the user who runs the tests, and for build users.
#[track_caller]
fn for_every_user(script: &str) {
    for group in groups() {
        in_newer_nix(group, FEATURES, SETTINGS, script);
    }
}

#[test]
fn a_build_is_registered_and_can_be_checked() {
    for_every_user(
        r#"
        build 0 'id -u; echo $PWD; echo hello > $out'
        said 1000
        said /build
        out=$(tail -n 1 /tmp/said)
        [ "$(cat $out)" = hello ]
        nix-store --verify --check-contents 2>/dev/null
        [ "$(stat -c %u:%a:%Y $out)" = 0:444:1 ]
        build 0 'id -u; echo $PWD; echo hello > $out' --check
        # The room is anchorhold's and not Nix's.
        build 0 'cat /proc/self/status > $out' --argstr name status
        grep -q 'Seccomp:.2' $(tail -n 1 /tmp/said)
        [ -z "$(ls -A /nix/var/nix/builds)" ]
        "#,
    );
}

#[test]
fn what_differs_is_found_by_check() {
    for_every_user(
        r#"
        build 0 'cat /proc/sys/kernel/random/uuid > $out'
        build 104 'cat /proc/sys/kernel/random/uuid > $out' --check
        said 'may not be deterministic'
        "#,
    );
}

#[test]
fn a_failure_is_nix_s_with_its_log() {
    for_every_user(
        r#"
        build 100 'echo the last words; exit 7'
        said 'exit code 7'
        said 'the last words'
        build 100 'exec /nothing'
        said 'exit code 127'
        build 1 'true'
        said 'failed to produce output path'
        [ -z "$(ls -A /nix/var/nix/builds)" ]
        "#,
    );
}

#[test]
fn a_failed_build_is_kept() {
    for_every_user(
        r#"
        build 100 'echo work > /build/half-done; exit 1' --keep-failed
        said 'keeping build directory'
        [ "$(cat /nix/var/nix/builds/*/build/half-done)" = work ]
        [ ! -e /nix/var/nix/builds/*/anchorhold ]
        "#,
    );
}

#[test]
fn time_and_silence_and_too_long_a_log_end_a_build_and_all_of_it() {
    for_every_user(
        r#"
        build 101 'sleep 1357 & sleep 1357' --timeout 1
        said 'timed out after 1 seconds'
        build 101 'sleep 1357 & sleep 1357' --max-silent-time 1
        build 1 'sleep 1357 & while true; do echo and again; done' --option max-build-log-size 10000
        said 'more than 10000 bytes of log'
        nobody_sleeps
        "#,
    );
}

#[test]
fn a_wrong_hash_is_a_mismatch() {
    for_every_user(
        r#"
        cat > /tmp/fixed.nix <<'E'
        { hash ? "" }: import /tmp/thing.nix { script = "echo hello > $out"; more = {
          outputHash = hash; outputHashAlgo = "sha256"; outputHashMode = "flat"; }; }
E
        status=0
        nix-build /tmp/fixed.nix --no-out-link > /tmp/said 2>&1 || status=$?
        [ $status = 102 ] || { cat /tmp/said; exit 1; }
        said 'hash mismatch in fixed-output derivation'
        got=$(sed -n 's/^ *got: *//p' /tmp/said)
        nix-build /tmp/fixed.nix --no-out-link --argstr hash "$got"
        # Built again it is what it was: it would have the network, for which there is no program here, and others would not.
        networked='[{"systems":["x86_64-linux","aarch64-linux"],"program":"/tmp/anchorhold","args":["attach"]}]'
        nix-build /tmp/fixed.nix --no-out-link --argstr hash "$got" --check
        nix-build /tmp/fixed.nix --no-out-link --argstr hash "$got" --check --option external-builders "$networked" \
            > /tmp/said 2>&1 && exit 1
        said 'network: '
        said '--option network none'
        build 0 'echo > $out' --option external-builders "$networked"
        build 0 'echo > $out' --option external-builders "$networked" --check
        "#,
    );
}

#[test]
fn several_outputs_and_structured_attributes_and_files() {
    for_every_user(
        r#"
        cat > /tmp/many.nix <<'E'
        import /tmp/thing.nix { name = "many"; script = "echo a > $out; mkdir $dev; echo $out > $dev/refers"; more = {
          outputs = [ "out" "dev" ]; }; }
E
        dev=$(nix-build /tmp/many.nix -A dev --no-out-link)
        out=$(nix-build /tmp/many.nix -A out --no-out-link)
        [ "$(cat $dev/refers)" = $out ]
        [ "$(nix-store -q --references $dev)" = $out ]

        cat > /tmp/structured.sh <<'E'
        out=$($1/sed -n 's/.*"outputs":{"out":"\([^"]*\)".*/\1/p' /build/.attrs.json)
        $1/cat /build/.attrs.json > $out
E
        cat > /tmp/structured.nix <<'E'
        let tools = builtins.storePath (builtins.getEnv "TOOLS"); in
        import /tmp/thing.nix { name = "structured"; more = {
          __structuredAttrs = true; list = [ "a" 1 true ];
          args = [ (builtins.toFile "builder.sh" (builtins.readFile /tmp/structured.sh)) "${tools}/bin" ]; }; }
E
        grep -q '"list":\["a",1,true\]' $(nix-build /tmp/structured.nix --no-out-link)

        cat > /tmp/file.nix <<'E'
        import /tmp/thing.nix { name = "file"; script = "cat $textPath > $out"; more = { text = "in a file"; passAsFile = [ "text" ]; }; }
E
        [ "$(cat $(nix-build /tmp/file.nix --no-out-link))" = 'in a file' ]
        "#,
    );
}

#[test]
fn outputs_that_are_named_by_what_they_hold() {
    for_every_user(
        r#"
        cat > /tmp/floating.nix <<'E'
        import /tmp/thing.nix { name = "floating"; script = "mkdir $out; echo $out > $out/itself"; more = {
          __contentAddressed = true; outputHashAlgo = "sha256"; outputHashMode = "recursive"; }; }
E
        sed -i 's/^experimental-features.*/& ca-derivations/' $NIX_CONF_DIR/nix.conf
        out=$(nix-build /tmp/floating.nix --no-out-link)
        [ "$(cat $out/itself)" = $out ]
        nix-build /tmp/floating.nix --no-out-link --check
        "#,
    );
}

#[test]
fn a_store_whose_files_lie_elsewhere() {
    for_every_user(
        r#"
        export NIX_REMOTE=/nix/elsewhere
        export TOOLS=$(nix-store --add /tmp/busybox)
        build 100 'echo hello > $out; ls -d /nix/elsewhere'
        build 0 'echo hello > $out; [ ! -e /nix/elsewhere ]'
        out=$(tail -n 1 /tmp/said)
        [ "$(cat /nix/elsewhere$out)" = hello ] && [ ! -e $out ]
        "#,
    );
}

#[test]
fn what_policy_refuses_nix_says() {
    for_every_user(
        r#"
        cat > /tmp/wishes.nix <<'E'
        { more }: import /tmp/thing.nix { inherit more; }
E
        refused() {
            nix-build /tmp/wishes.nix --no-out-link --arg more "$1" > /tmp/said 2>&1 && exit 1
            said 'while setting up the build environment'
            said "$2"
        }
        refused '{ requiredSystemFeatures = [ "a-machine-of-gold" ]; }' a-machine-of-gold
        refused '{ __noChroot = true; }' __noChroot
        "#,
    );
}

#[test]
fn an_untrusted_user_builds_through_the_daemon() {
    in_newer_nix(
        "nixbld",
        FEATURES,
        SETTINGS,
        r#"
        OF_THE_DAEMON=secret nix-daemon > /tmp/daemon 2>&1 &
        while [ ! -S /nix/var/nix/daemon-socket/socket ]; do sleep 0.05; done
        mkdir -m 777 /tmp/client
        printf 'experimental-features = nix-command\nsubstitute = false\n' > /tmp/client/nix.conf
        chmod 755 /tmp/conf
        alice() {
            setpriv --reuid alice --regid alice --clear-groups env NIX_REMOTE=daemon NIX_CONF_DIR=/tmp/client \
                XDG_CACHE_HOME=/tmp/client HOME=/tmp/client "$@"
        }
        status=0
        alice nix-build /tmp/thing.nix --no-out-link --argstr script 'env; id -u; cat /proc/self/status > $out' \
            --option sandbox false --builders '' > /tmp/said 2>&1 || status=$?
        [ $status = 0 ] || { cat /tmp/said /tmp/daemon; exit 1; }
        grep -q 'Seccomp:.2' $(tail -n 1 /tmp/said)
        ! grep OF_THE_DAEMON /tmp/said
        # Neither of these leads around it.
        alice nix-build /tmp/thing.nix --no-out-link --argstr name local --argstr script 'cat /proc/self/status > $out' \
            --arg more '{ preferLocalBuild = true; __noChroot = true; }' -j4 > /tmp/said 2>&1 && exit 1
        said __noChroot
        alice nix-build /tmp/thing.nix --no-out-link --argstr name local --argstr script 'cat /proc/self/status > $out' \
            --arg more '{ preferLocalBuild = true; }' -j4 --option external-builders '[]' > /tmp/said 2>&1
        grep -q 'Seccomp:.2' $(tail -n 1 /tmp/said)
        "#,
    );
}

#[test]
fn an_interrupt_ends_the_build() {
    for group in groups() {
        let nix = match NewerNix::new(group, FEATURES, SETTINGS) {
            Ok(nix) => nix,
            Err(reason) => return skip(&reason),
        };
        // With job control, because a shell without it has what it starts in the background ignore interrupts.
        let script = r#"
            set -m
            nix-build /tmp/thing.nix --no-out-link --argstr script 'echo begun; sleep 2468' > /tmp/said 2>&1 &
            until grep -q begun /tmp/said; do sleep 0.05; done
            kill -INT $!
            status=0
            wait $! || status=$?
            nobody_sleeps
            echo "status $status, kept $(ls -A /nix/var/nix/builds | wc -l)"
        "#;
        assert_eq!(nix.run(script).lines().last(), Some("status 1, kept 0"));
    }
}
