//! Configurations, and the whole of what is said of them.

use super::*;
use crate::nix_config::files::Places;

fn judged_with(
    version: Option<Version>,
    configuration: &str,
    is_executable: fn(&Path) -> bool,
) -> (Vec<Door>, Vec<Finding>) {
    let mut text = "extra-platforms = i686-linux\nsystem = x86_64-linux\nsandbox-fallback = false\n".to_owned();
    text.push_str(configuration);
    let settings = Places { files: Vec::new(), last: Some(text) }.read().unwrap();
    let machines = machines::addresses(settings.get("builders"));
    judge(&Facts { settings: &settings, version, machines, is_executable })
}

fn judged(version: Version, configuration: &str) -> (Vec<Door>, Vec<Finding>) {
    judged_with(Some(version), configuration, |_| true)
}

fn verdicts(findings: &[Finding]) -> Vec<(&str, Verdict)> {
    findings.iter().map(|one| (one.aspect, one.verdict)).collect()
}

fn of<'a>(findings: &'a [Finding], aspect: &str) -> &'a Finding {
    findings.iter().find(|one| one.aspect == aspect).unwrap_or_else(|| panic!("no {aspect} in {findings:#?}"))
}

const ATTACH: &str = concat!(
    "experimental-features = nix-command external-builders\n",
    r#"external-builders = [{"systems": ["x86_64-linux", "i686-linux"], "program": "/usr/bin/anchorhold", "args": ["attach"]}]"#,
    "\n"
);

#[test]
fn nix_alone_has_no_door() {
    let (doors, findings) = judged((2, 34), "builders = ssh://other\n");
    assert_eq!(doors, []);
    assert_eq!(verdicts(&findings), [("door", Verdict::Missing), ("other-machines", Verdict::Weaker)]);
}

#[test]
fn an_external_builder_for_every_system_cannot_be_walked_around() {
    let (doors, findings) = judged((2, 34), ATTACH);
    assert_eq!(doors, [Door::Attach]);
    assert_eq!(
        verdicts(&findings),
        [
            ("door", Verdict::Works),
            ("external-builders", Verdict::Works),
            ("local-builds", Verdict::Works),
            ("trusted-users", Verdict::Works),
            ("nix-sandbox", Verdict::Works),
        ]
    );
    assert_eq!(of(&findings, "external-builders").found, "for i686-linux, x86_64-linux");
}

#[test]
fn a_system_that_is_not_named_is_nixs_own() {
    let (doors, findings) =
        judged((2, 34), &format!("{ATTACH}extra-extra-platforms = x86_64-v1-linux\nsandbox-fallback = true\n"));
    assert_eq!(doors, [Door::Attach]);
    let local = of(&findings, "local-builds");
    assert_eq!(local.verdict, Verdict::Weaker);
    assert_eq!(local.found, "Nix builds for x86_64-v1-linux in its own sandbox");
    assert_eq!(of(&findings, "nix-sandbox").verdict, Verdict::Weaker);
    let (_, findings) = judged((2, 34), &format!("{ATTACH}sandbox = false\n"));
    assert_eq!(of(&findings, "nix-sandbox").verdict, Verdict::Info, "nothing is left for it");
}

#[test]
fn what_makes_an_external_builder_idle_is_named() {
    let (feature, setting) = ATTACH.split_once('\n').unwrap();
    let cases = [
        (judged((2, 31), ATTACH), "Nix 2.31 does not know it"),
        (judged((2, 34), setting), "the experimental feature is off"),
        (judged((2, 34), &format!("{ATTACH}max-jobs = 0\n")), "max-jobs is 0"),
        (judged((2, 34), &ATTACH.replace(r#", "args": ["attach"]"#, "")), "missing field `args`"),
        (judged((2, 34), &ATTACH.replace(r#"["attach"]"#, "[]")), "args are []"),
        (judged_with(Some((2, 34)), ATTACH, |_| false), "‘/usr/bin/anchorhold’ is no program here"),
        (
            judged(
                (2, 34),
                &ATTACH
                    .replace("[{", r#"[{"systems": ["x86_64-linux", "i686-linux"], "program": "/x", "args": []}, {"#),
            ),
            "another entry before ours",
        ),
        (judged((2, 34), &format!("{feature}\nexternal-builders = anchorhold [[[[\n")), "not a list of entries"),
    ];
    for ((doors, findings), why) in cases {
        let finding = of(&findings, "external-builders");
        assert!(finding.found.contains(why), "{finding:?}");
        assert_eq!((doors, finding.verdict), (vec![], Verdict::Missing), "{why}");
        assert_eq!(of(&findings, "door").verdict, Verdict::Missing);
    }
}

#[test]
fn a_hook_is_walked_around_unless_nix_can_build_nothing_itself() {
    let hook = "build-hook = /usr/lib/anchorhold/anchorhold-hook\n";
    let (doors, findings) = judged((2, 8), hook);
    assert_eq!(doors, [Door::Hook]);
    let local = of(&findings, "local-builds");
    assert_eq!(local.verdict, Verdict::Weaker);
    assert!(local.found.contains("preferLocalBuild") && local.found.contains("x86_64-linux, i686-linux"), "{local:?}");
    assert!(local.fix.as_ref().unwrap().contains("system = hook-only"), "{local:?}");

    // One of the two lines is not enough.
    for line in ["system = hook-only\n", "extra-platforms =\n"] {
        let (_, findings) = judged((2, 8), &format!("{hook}{line}"));
        assert_eq!(of(&findings, "local-builds").verdict, Verdict::Weaker, "{line}");
    }
    let (_, findings) = judged((2, 8), &format!("{hook}system = hook-only\nextra-platforms =\nmax-jobs = 0\n"));
    let local = of(&findings, "local-builds");
    assert_eq!((local.verdict, local.fix.as_ref()), (Verdict::Works, None));
    assert!(local.found.contains("hook-only"));
}

#[test]
fn a_hook_that_this_nix_cannot_start_is_none() {
    let (doors, findings) = judged((2, 8), "build-hook = /usr/bin/anchorhold hook\n");
    assert_eq!((doors, of(&findings, "build-hook").verdict), (vec![], Verdict::Missing));
    let (doors, _) = judged((2, 34), "build-hook = /usr/bin/anchorhold hook\n");
    assert_eq!(doors, [Door::Hook]);
    let (doors, findings) = judged((2, 34), "build-hook = /usr/bin/anchorhold\n");
    assert_eq!((doors, of(&findings, "build-hook").verdict), (vec![], Verdict::Missing));
    let (doors, _) = judged_with(None, "build-hook = /usr/bin/anchorhold hook\n", |_| false);
    assert_eq!(doors, []);
}

#[test]
fn a_machine_of_ours_is_a_door_as_long_as_it_is_asked() {
    let builders =
        "builders = ssh-ng://localhost?remote-program=/usr/bin/anchorhold x86_64-linux ; ssh://other x86_64-linux\n";
    let (doors, findings) = judged((2, 34), builders);
    assert_eq!(doors, [Door::StoreServer]);
    assert!(of(&findings, "local-builds").found.contains("empties builders"));
    assert!(of(&findings, "other-machines").found.starts_with("ssh://other "));
    let (doors, findings) = judged((2, 34), &format!("{builders}build-hook =\n"));
    assert_eq!((doors, of(&findings, "builders").verdict), (vec![], Verdict::Missing));
    // Our hook puts itself in the place of all machines.
    let (doors, findings) = judged((2, 34), &format!("{builders}build-hook = /usr/bin/anchorhold hook\n"));
    assert_eq!(doors, [Door::Hook]);
    assert!(!findings.iter().any(|one| one.aspect == "other-machines"), "{findings:#?}");
}

#[test]
fn whoever_is_trusted_is_named() {
    let row =
        |users: &str| of(&judged((2, 34), &format!("{ATTACH}trusted-users = {users}\n")).1, "trusted-users").clone();
    assert_eq!(row("root").verdict, Verdict::Works);
    assert_eq!(row("root *").verdict, Verdict::Weaker);
    let some = row("root @wheel ci");
    assert_eq!(some.verdict, Verdict::Info);
    assert!(some.found.contains("root, @wheel, ci, groups among them"), "{some:?}");
}

#[test]
fn nixs_own_sandbox_is_judged_for_what_it_still_builds() {
    let row = |lines: &str| {
        let hook = "build-hook = /usr/bin/anchorhold hook\n";
        of(&judged((2, 34), &format!("{hook}{lines}")).1, "nix-sandbox").clone()
    };
    assert_eq!(row("").verdict, Verdict::Works);
    assert_eq!(row("sandbox-fallback = true\n").verdict, Verdict::Weaker);
    assert_eq!(row("sandbox = relaxed\n").verdict, Verdict::Weaker);
    assert_eq!(row("sandbox = false\n").verdict, Verdict::Missing);
}

#[test]
fn what_is_weaker_or_missing_has_a_fix_and_nothing_else() {
    for configuration in
        ["", ATTACH, "build-hook = /a/anchorhold hook\ntrusted-users = *\nsandbox = false\n", "max-jobs = 0\n"]
    {
        for version in [(2, 8), (2, 34)] {
            for one in judged(version, configuration).1 {
                let needs = matches!(one.verdict, Verdict::Weaker | Verdict::Missing);
                assert_eq!(one.fix.is_some(), needs, "{one:?}");
            }
        }
    }
}
