//! A newer Nix as the client: over a socket, and by both protocols over ssh.

use anchorhold_tests::newer_nix::in_newer_nix;

/// A server with a store of its own, and ways to it: `$served` by its socket, `$machine` as a remote builder by what sshd does
/// with a forced command, where `ssh` is a program that only seems to go anywhere.
const SERVER: &str = r#"
mkdir /tmp/bin /tmp/server-tmp
cat > /tmp/bin/ssh <<'E'
#!/bin/bash
for word in "$@"; do
    # No connection is shared. Whoever waits for word of one gets it.
    [ "$word" != -O ] || exit 1
    [ "$word" != '-oLocalCommand=echo started' ] || echo started
done
SSH_ORIGINAL_COMMAND="$*" TMPDIR=/tmp/server-tmp exec /tmp/anchorhold store-server --option network none --store /nix/served
E
chmod +x /tmp/bin/ssh
export PATH=/tmp/bin:$PATH
TMPDIR=/tmp/server-tmp /tmp/anchorhold store-server --socket /tmp/socket --store /nix/served --option network none 2> /tmp/server &
until [ -S /tmp/socket ]; do busybox usleep 10000; done
served="unix:///tmp/socket?root=/nix/served"
system=$(uname -m)-linux
nix copy --no-check-sigs --to "$served" $TOOLS
# Nothing is wrong with the served store, in a real Nix's eyes.
is_whole() {
    nix-store --store /nix/served --verify --check-contents > /tmp/verified 2>&1 || { cat /tmp/verified; return 1; }
}
fails() {
    if "$@" > /tmp/said 2>&1; then echo "it did not fail: $*"; cat /tmp/said; return 1; fi
}
"#;

#[track_caller]
fn with_server(script: &str) {
    in_newer_nix("", "", "", &format!("{SERVER}\n{script}"));
}

#[test]
fn paths_are_copied_both_ways_and_looked_at() {
    with_server(
        r#"
        nix store info --store "$served" > /tmp/said 2>&1
        said 'Version: anchorhold'
        said 'Trusted: 1'
        nix store ping --store ssh-ng://machine > /tmp/said 2>&1
        said 'Version: anchorhold'
        mkdir /tmp/tree
        echo hello > /tmp/tree/file
        ln -s file /tmp/tree/link
        path=$(nix-store --add /tmp/tree)
        for store in "$served" ssh-ng://machine ssh://machine; do
            # What is told of a path is what was told; only the time is the store's own.
            nix copy --no-check-sigs --to "$store" $path
            [ "$(nix path-info --store "$store" $path)" = $path ]
            of() { nix path-info --json --json-format 1 --store "$1" $path | sed 's/"registrationTime":[0-9]*//; s/"ultimate":[a-z]*//'; }
            # The old protocol has no time and no word of where a path was built; this Nix does not look into paths by it.
            if [ "$store" != ssh://machine ]; then
                [ "$(of "$store")" = "$(of local)" ] || { of "$store"; of local; exit 1; }
                [ "$(nix store cat --store "$store" $path/file)" = hello ]
                nix store ls -lR --store "$store" $path | grep -q -- './link -> file'
            fi
            [ "$(nix-store --store "$store" -qR $path)" = $path ]
            rm -rf /tmp/back; nix copy --no-check-sigs --from "$store" --to /tmp/back $path
            [ "$(readlink /tmp/back$path/link)" = file ]
            nix store delete --store /nix/served $path > /dev/null 2>&1
        done
        nix-copy-closure --to machine $path
        [ "$(cat /nix/served$path/file)" = hello ]
        rm -rf /tmp/back; NIX_REMOTE=/tmp/back nix-copy-closure --from machine $path
        [ "$(cat /tmp/back$path/file)" = hello ]
        nix store verify --no-trust --all --store "$served"
        nix-store --store "$served" --verify --check-contents 2> /dev/null
        nix store optimise --store "$served"
        direct=$(nix store add --store "$served" --name direct /tmp/tree)
        is_whole
        nix-store --store "$served" --realise $path --add-root /tmp/kept > /dev/null
        nix store gc --store "$served" > /dev/null 2>&1
        [ -e /nix/served$path ] && [ ! -e /nix/served$direct ]
        is_whole
        "#,
    );
}

#[test]
fn the_server_builds_and_says_what_went_wrong() {
    with_server(
        r#"
        cat > /tmp/structured.nix <<'E'
        let tools = builtins.storePath (builtins.getEnv "TOOLS"); in
        import /tmp/thing.nix { name = "structured"; more = {
          __structuredAttrs = true; list = [ "a" 1 true ];
          args = [ "-c" ''
            out=$(${tools}/bin/sed -n 's/.*"outputs":{"out":"\([^"]*\)".*/\1/p' /build/.attrs.json)
            ${tools}/bin/cat /build/.attrs.json > $out
          '' ]; }; }
E
        for store in "$served" ssh-ng://machine; do
            export NIX_REMOTE=$store
            build 0 'echo hello from $name; echo $out > $out'
            [ "$(cat /nix/served$(tail -n 1 /tmp/said))" = $(tail -n 1 /tmp/said) ]
            drv=$(nix-instantiate /tmp/thing.nix --argstr script 'echo the last words; exit 3' 2> /dev/null)
            # A client of a store elsewhere is not told the class of a failure by the operation that nix-build uses.
            build 1 'echo the last words; exit 3'
            said 'exit code 3'
            said '> the last words'
            fails nix build --no-link --impure -f /tmp/thing.nix --argstr script 'echo the last words; exit 3'
            said 'the last words'
            # Over ssh this Nix does not ask for logs.
            [ "$store" = ssh-ng://machine ] || [ "$(nix log $drv)" = 'the last words' ]
            build 0 'cat /proc/sys/kernel/random/uuid > $out; echo 1 > $dev' --argstr name uuid --arg more '{ outputs = [ "out" "dev" ]; }' -A dev
            nix build --no-link --print-out-paths --impure -f /tmp/thing.nix --argstr name plain > /tmp/said
            grep -q -- -plain /tmp/said
            fixed='outputHashAlgo = "sha256"; outputHashMode = "flat"; outputHash ='
            build 1 'echo hello > $out' --arg more "{ $fixed \"\"; }"
            said 'hash mismatch'
            got=$(sed -n 's/^ *got: *//p' /tmp/said)
            build 0 'echo hello > $out' --arg more "{ $fixed \"$got\"; }"
            structured=$(nix-build /tmp/structured.nix --no-out-link)
            grep -q '"list":\["a",1,true\]' /nix/served$structured
            unset NIX_REMOTE
            nix-store --store /nix/served --gc > /dev/null 2>&1
            nix copy --no-check-sigs --to "$served" $TOOLS
        done
        is_whole
        "#,
    );
}

#[test]
fn limits_checks_and_kept_builds() {
    with_server(
        r#"
        export NIX_REMOTE=$served
        build 1 'sleep 1357' --timeout 1
        said 'timed out'
        build 1 'sleep 1357' --max-silent-time 1
        said 'it wrote nothing for 1s'
        build 1 'while true; do echo and again; done' --option max-build-log-size 10000
        said 'of log'
        build 1 'echo work > /build/half-done; exit 1' --keep-failed
        [ "$(cat /tmp/server-tmp/nix-build-thing.drv-0/build/half-done)" = work ]
        build 0 'cat /proc/sys/kernel/random/uuid > $out'
        build 1 'cat /proc/sys/kernel/random/uuid > $out' --check
        said 'may not be deterministic'
        build 0 'echo > $out'
        build 0 'echo > $out' --check
        nobody_sleeps
        unset NIX_REMOTE
        is_whole
        "#,
    );
}

#[test]
fn it_is_a_remote_builder_by_both_protocols() {
    with_server(
        r#"
        for machine in ssh://machine ssh-ng://machine "ssh-ng://localhost?remote-program=/tmp/serve"; do
            printf '#!/bin/sh\nexec /tmp/anchorhold store-server --option network none --store /nix/served "$@"\n' > /tmp/serve
            chmod +x /tmp/serve
            name=$(echo $machine | tr -dc a-z)
            on=(-j0 --builders "$machine $system - 1 1" --argstr name $name)
            build 0 'echo hello from $name; echo $out > $out' "${on[@]}"
            said "hello from $name"
            [ "$(cat $(tail -n 1 /tmp/said))" = $(tail -n 1 /tmp/said) ]
            # A newer Nix takes every failure of a remote build for the same.
            build 1 'echo the last words; exit 4' "${on[@]}"
            said 'exit code 4'
            said 'the last words'
        done
        nix-store --verify --check-contents 2> /dev/null
        is_whole
        "#,
    );
}

#[test]
fn an_interrupt_ends_the_build() {
    with_server(
        r#"
        for options in "--store $served" "-j0 --builders ssh-ng://machine" "-j0 --builders ssh://machine"; do
            # With job control, because a shell without it has what it starts in the background ignore interrupts.
            set -m
            nix-build /tmp/thing.nix --no-out-link --argstr script 'echo begun; sleep 2468' $options > /tmp/said 2>&1 &
            until grep -q begun /tmp/said; do
                kill -0 $! 2> /dev/null || { cat /tmp/said; exit 1; }
                busybox usleep 50000
            done
            kill -INT $!
            status=0
            wait $! || status=$?
            set +m
            [ $status != 0 ]
            nobody_sleeps
        done
        is_whole
        "#,
    );
}

#[test]
fn whoever_is_not_believed_brings_the_derivations() {
    // As root, who alone can be somebody else, too.
    if !anchorhold_tests::host::is_root() {
        return anchorhold_tests::skip("only root can be two users");
    }
    with_server(
        r#"
        mkdir -m 777 /tmp/client
        printf 'experimental-features = nix-command\nsubstitute = false\n' > /tmp/client/nix.conf
        as="setpriv --reuid alice --regid alice --clear-groups env NIX_CONF_DIR=/tmp/client XDG_CACHE_HOME=/tmp/client HOME=/tmp/client TMPDIR=/tmp/client"
        $as nix store info --store "$served" > /tmp/said 2>&1
        said 'Trusted: 0'
        build 0 'echo $out > $out' --store "$served"
        # As a remote builder: it is told that it is not trusted, and sends what is to be built with all that this needs.
        nix-store --gc > /dev/null 2>&1
        export TOOLS=$(nix-store --add /tmp/busybox)
        as=
        printf '#!/bin/sh\nexec /tmp/anchorhold store-server --untrusted --option network none --store /nix/served "$@"\n' > /tmp/serve
        chmod +x /tmp/serve
        build 0 'echo $out > $out' --argstr name sent -j0 --builders "ssh-ng://localhost?remote-program=/tmp/serve $system - 1 1"
        [ -e /nix/served$(tail -n 1 /tmp/said) ]
        ls /nix/served/nix/store | grep -q -- '-sent.drv$'
        # What somebody says was built is not taken without a signature, whatever is asked for.
        build 0 'echo $out > $out' --argstr name claimed --option sandbox false
        out=$(tail -n 1 /tmp/said)
        fails nix copy --no-check-sigs --to "ssh-ng://localhost?remote-program=/tmp/serve" $out
        said 'lacks a signature by a trusted key'
        [ ! -e /nix/served$out ]
        is_whole
        "#,
    );
}
