//! The generated `/etc`.

use std::fs;

use crate::room;

#[test]
fn etc_holds_exactly_this() {
    let names: Vec<String> = room()
        .with(["--no-usr"])
        .probe(["list", "/etc"])
        .lines()
        .iter()
        .map(|line| line.split(' ').take(3).collect::<Vec<_>>().join(" "))
        .collect();
    assert_eq!(names, ["group file 0444", "hosts file 0444", "passwd file 0444"]);
}

#[test]
fn the_files_say_who_is_there() {
    let passwd = "root:x:0:0:Nix build user:/home/nixbld:/noshell\n\
                  nixbld:x:1000:100:Nix build user:/home/nixbld:/noshell\n\
                  nobody:x:65534:65534:Nobody:/:/noshell\n";
    assert_eq!(room().probe(["read", "/etc/passwd"]).expect_success().stdout, passwd);
    assert_eq!(
        room().probe(["read", "/etc/group"]).expect_success().stdout,
        "root:x:0:\nnixbld:!:100:\nnogroup:x:65534:\n"
    );
    assert_eq!(room().probe(["read", "/etc/hosts"]).expect_success().stdout, "127.0.0.1 localhost\n::1 localhost\n");
}

#[test]
fn the_files_follow_the_ids_that_were_chosen() {
    let passwd = room().with(["--uid", "4242", "--gid", "77"]).probe(["read", "/etc/passwd"]).expect_success().stdout;
    assert!(passwd.contains("\nnixbld:x:4242:77:"), "{passwd}");
}

#[test]
fn programs_find_the_payload_by_name() {
    assert_eq!(room().shell("id -un; id -gn").lines(), ["nixbld", "nixbld"]);
}

#[test]
fn without_the_layer_the_hosts_etc_is_read() {
    let host = fs::read_to_string("/etc/passwd").expect("the host's");
    // Where Debian's alternatives would be bound, the whole of /etc is already.
    let seen = room().with(["--no-usr"]).without("etc").probe(["read", "/etc/passwd"]).expect_success().stdout;
    assert_eq!(seen, host);
}

#[test]
fn nothing_can_be_made_or_changed_in_etc() {
    assert_eq!(room().probe(["create", "/etc/more"]).line(), "EROFS");
    assert_eq!(room().probe(["chmod", "/etc/passwd", "0644"]).line(), "EROFS");
}
