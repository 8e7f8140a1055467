//! What derivations mean: what is built of them, and what is refused.

use std::collections::BTreeMap;
use std::fs;

use serde_json::{Value, json};

use crate::judge::Judge;
use crate::recipe::Recipe;
use crate::world::World;

/// What `hello` without a newline is in each algorithm: as it is and as an archive; base 16, base 32, SRI.
const HELLO: [(&str, &str, [&str; 3]); 8] = [
    ("flat", "md5", ["5d41402abc4b2a76b9719d911017c592", "4jqlbi14cxf6wpcajbphm40hax", "md5-XUFAKrxLKna5cZ2REBfFkg=="]),
    ("nar", "md5", ["d5f71056c1fb056ec673d7c942d6269b", "4v4vb45jfpfg36w1gvq5b11xym", "md5-1fcQVsH7BW7Gc9fJQtYmmw=="]),
    (
        "flat",
        "sha1",
        [
            "aaf4c61ddcc5e8a2dabede0f3b482cd9aea9434d",
            "9m1skbnr5i43n3yypvda5s65vhfwdx5a",
            "sha1-qvTGHdzF6KLavt4PO0gs2a6pQ00=",
        ],
    ),
    (
        "nar",
        "sha1",
        [
            "5144612b23081da49ab008bd0b73960b6a2b7fe9",
            "x5zjnshbjrrhpg88n2da87884cmn2i2i",
            "sha1-UURhKyMIHaSasAi9C3OWC2orf+k=",
        ],
    ),
    (
        "flat",
        "sha256",
        [
            "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
            "094qif9n4cq4fdg459qzbhg1c6wywawwaaivx0k0x8xhbyx4vwic",
            "sha256-LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=",
        ],
    ),
    (
        "nar",
        "sha256",
        [
            "0a430879c266f8b57f4092a0f935cf3facd48bbccde5760d4748ca405171e969",
            "0sg9f58l1jj88w6pdrfdpj5x9b1zrwszk84j81zvby36q9whhhqa",
            "sha256-CkMIecJm+LV/QJKg+TXPP6zUi7zN5XYNR0jKQFFx6Wk=",
        ],
    ),
    (
        "flat",
        "sha512",
        [
            "9b71d224bd62f3785d96d46ad3ea3d73319bfbc2890caadae2dff72519673ca72323c3d99ba5c11d7c7acc6e14b8c5da0c4663475c2e5c3adef46f73bcdec043",
            "11w1pmwfdpz9pisbhp5qiv38q6dmidq2ipcqykw3p0sb6yrqcij79rwcwcjbxyzwbdal349qbxrncbk7pmd6snljrfpiwv2pljd4wcv",
            "sha512-m3HSJL1i83hdltRq0+o9czGb+8KJDKra4t/3JRlnPKcjI8PZm6XBHXx6zG4UuMXaDEZjR1wuXDre9G9zvN7AQw==",
        ],
    ),
    (
        "nar",
        "sha512",
        [
            "0d1b2424fde1885198ddd99e258e5431c4f00b6ce756a94a31d15563470969a2cbc4ddeb36a7aa93ad21be08cf2bd659e711cc89b0c36fb8a1a76188377d0283",
            "21h4z9pi1hsg8dqdz1v12fc27kmkmibrw4bw8ddjfmafdpbvp2cp8k9153n6mfi655ajmp7dh5z1i1iaj72b7nrvnc53271zlj286qd",
            "sha512-DRskJP3hiFGY3dmeJY5UMcTwC2znVqlKMdFVY0cJaaLLxN3rNqeqk60hvgjPK9ZZ5xHMibDDb7ihp2GIN30Cgw==",
        ],
    ),
];

/// A derivation whose one output is a file of its text.
fn leaf(world: &World, name: &str) -> String {
    world.derivation(&Recipe::new(world, name, "echo leaf > $out"))
}

/// Where a builder with structured attributes, which has a shell without arrays, is to make its output.
const OUT_OF_JSON: &str = r#"out=$(sed 's/.*"outputs":{"out":"\([^"]*\)".*/\1/' .attrs.json); "#;

/// All that a real Nix builds as well.
fn recipes(world: &World) -> Vec<Recipe> {
    let text = world.add_file("text", "text\n");
    let leaf = leaf(world, "leaf");
    let parts = Recipe::new(
        world,
        "parts",
        "mkdir -p $out/bin $dev; echo $dev > $out/bin/x; echo $doc > $dev/y; ln -s $doc/z $dev/l; echo $doc > $doc",
    )
    .outputs(&["out", "dev", "doc"]);
    let parts_path = world.derivation(&parts);
    let recipe = |name: &str, script: &str| Recipe::new(world, name, script);
    let dump = "env | sort > $out; for file in $(ls -A); do echo \"$file: $(cat $file)\" >> $out; done";
    let mut all = vec![
        recipe("environment", dump).env("odd", "a\nb\"\\'$x ü").env("HOME", "/mine").env("TMPDIR", "/lost"),
        recipe("arguments", "x").set(
            "args",
            json!(["-c", "printf '<%s>' \"$0\" \"$@\" > $out", "zero", "", "a b", "/1rz4g4znpzjwh1xymhjpm42vipw92pr73vdgl6xs1hycac8kf2n9"]),
        ),
        recipe("placeholders", "mkdir $out; echo $own > $out/own; echo $other > $out/other; echo $own > $dev")
            .outputs(&["out", "dev"])
            .env("own", "/1rz4g4znpzjwh1xymhjpm42vipw92pr73vdgl6xs1hycac8kf2n9/bin")
            .env("other", "/no-placeholder"),
        recipe("pass-as-file", dump).env("passAsFile", "long with-dash").env("long", "l\n$out").env("with-dash", "x"),
        recipe("graph", &format!("{dump}; cat graph other >> $out"))
            .source("text", &text)
            .needs(world, "leaf", &leaf, "out")
            .needs(world, "dev", &parts_path, "dev")
            .env("exportReferencesGraph", format!("graph {text} other {}", world.output(&parts_path, "dev"))),
        recipe("structured", &format!("{OUT_OF_JSON} cat .attrs.json .attrs.sh > $out; env | grep -v ^NIX_ATTRS | sort >> $out")).structured(
            json!({ "odd": "a\nb\"\\'$x ü", "number": 5, "float": 0.5, "list": ["a", true, null, "it's"], "nested": { "a": [{}] },
                    "PATH": format!("{}/bin", world.tools) }),
        ),
        recipe("structured-graph", &format!("{OUT_OF_JSON} cat .attrs.json > $out"))
            .source("text", &text)
            .needs(world, "leaf", &leaf, "out")
            .structured(
                json!({ "exportReferencesGraph": { "graph": [text, world.output(&leaf, "out")] }, "PATH": format!("{}/bin", world.tools) }),
            ),
        recipe("self", "mkdir $out; printf 'a%sb' $out > $out/mine; echo ${out#/nix/store/} > $out/hash-alone; ln -s $out $out/self"),
        recipe("only-lib", "echo $lib > $lib").set("env", json!({ "PATH": format!("{}/bin", world.tools) })).outputs(&["lib"]),
        recipe("above", "mkdir $out; ln -s $dev/y $out/y; echo $leaf > $out/leaf; cat $text > $out/text")
            .source("text", &text)
            .needs(world, "leaf", &leaf, "out")
            .needs(world, "dev", &parts_path, "dev"),
        recipe(
            "forms",
            r#"mkdir -p $out/empty $out/d/e/f; : > $out/nothing; echo x > $out/run; chmod 700 $out/run; chmod 600 $out/nothing
               ln -s nowhere $out/dangling; ln -s /etc/passwd $out/passwd; ln $out/run $out/d/same; touch -t 200001010000 $out/d
               echo n > "$out/$(printf 'new\nline')"; echo b > "$out/$(printf 'not\377utf8')"; echo c > "$out/a~nix~case~hack~1"
               head -c 100000 /dev/zero > $out/zeros; chmod 2755 $out/d 2>/dev/null; chmod 500 $out/d/e"#,
        ),
        recipe("link", "ln -s $text $out").source("text", &text),
        recipe("thirty-two", "uname -m > $out").set("system", "i686-linux"),
        recipe("wishes", "echo $NIX_BUILD_CORES > $out")
            .env("requiredSystemFeatures", "big-parallel benchmark")
            .env("preferLocalBuild", "1")
            .env("allowSubstitutes", ""),
        recipe("allowed", "echo $text $out > $out")
            .source("text", &text)
            .env("allowedReferences", format!("{text} out"))
            .env("allowedRequisites", format!("{text} out"))
            .env("disallowedReferences", world.tools.clone()),
        recipe("asks", "test \"$UNICORN:$ABSENT\" = 'from outside:' && printf hello > $out")
            .fixed("flat", "sha256", HELLO[4].2[0])
            .env("impureEnvVars", "UNICORN ABSENT"),
        parts,
    ];
    for (method, algorithm, hash) in HELLO {
        let fixed = recipe(&format!("fixed-{method}-{algorithm}"), "printf hello > $out");
        all.push(fixed.fixed(method, algorithm, hash[0]));
    }
    all
}

#[test]
fn the_same_derivations_give_what_nix_gives() {
    let world = World::new();
    let Some(judge) = Judge::beside(&world) else { return };
    let derivations: Vec<String> = recipes(&world).iter().map(|recipe| world.derivation(recipe)).collect();
    let outputs: Vec<String> = derivations
        .iter()
        .flat_map(|derivation| {
            let shown: Value = serde_json::from_str(&world.said(&["derivation", "show", "--old", derivation])).unwrap();
            let outputs = shown[derivation]["outputs"].as_object().unwrap().clone();
            outputs.values().map(|output| output["path"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        })
        .collect();
    let impure = r#"{ UNICORN = "from outside" }"#;
    let options = ["--keep-going", "--jobs", "2", "--option", "cores", "3", "--option", "impure-env", impure];
    let ours = world.build(&derivations, &options);
    assert_eq!(ours.code, 0, "{}", ours.err);

    judge.give(&derivations);
    let theirs = judge.realise(&derivations);
    assert!(theirs.status.success(), "{}", crate::world::text(&theirs.stderr));
    let known: BTreeMap<String, Value> =
        judge.facts(&outputs).into_iter().map(|facts| (facts["path"].as_str().unwrap().to_owned(), facts)).collect();
    for output in &outputs {
        let (ours, theirs) = (world.facts(output), &known[output]);
        for key in ["narHash", "narSize", "references", "ca", "deriver"] {
            let both = || format!("{:?}\n{:?}", fs::read_to_string(world.real(output)), judge.read(output));
            assert_eq!(ours[key], theirs[key], "{output}: {key}\n{}", both());
        }
    }
    judge.accepts("nix-store", &["--verify", "--check-contents"]);
    judge.accepts("nix", &["path-info", "--all"]);
    world.is_whole();
}

/// The other way round: derivations that a real Nix made, in its spelling.
#[test]
fn derivations_of_a_real_nix_are_built() {
    let world = World::new();
    let Some(judge) = Judge::beside(&world) else { return };
    let expression = format!(
        r#"let sh = {{ system = "x86_64-linux"; builder = builtins.storePath "{0}" + "/bin/sh"; PATH = builtins.storePath "{0}" + "/bin"; }};
               text = builtins.toFile "text" "text";
               one = derivation (sh // {{ name = "one"; outputs = [ "out" "dev" ]; args = [ "-c" "echo ''${{text}} > $out; echo $out > $dev" ]; }});
               fetched = derivation (sh // {{ name = "fetched"; outputHash = "{1}"; outputHashAlgo = "sha256"; args = [ "-c" "printf hello > $out" ]; }});
           in derivation (sh // {{ name = "two"; __structuredAttrs = true; needs = [ one.dev fetched ]; where = placeholder "out";
                args = [ "-c" "cat .attrs.json > ''${{placeholder "out"}}" ]; }})"#,
        world.tools, HELLO[4].2[1],
    );
    let file = world.file("expression.nix", &expression.replace("''$", "$"));
    // Nix evaluates in its own store, so it needs the tools there.
    let copied = judge
        .on(world.root(), "nix", &["copy", "--no-check-sigs", "--to"])
        .arg(world.path("judge"))
        .arg(&world.tools)
        .output()
        .unwrap();
    assert!(copied.status.success(), "{}", crate::world::text(&copied.stderr));
    let two = judge
        .said("nix-instantiate", &["--option", "restrict-eval", "false", file.to_str().unwrap()])
        .trim()
        .to_owned();

    let closure = judge.said("nix-store", &["--query", "--requisites", &two]);
    let closure: Vec<&str> = closure.lines().collect();
    let exported = judge.ask("nix-store", &[&["--export"], &closure[..]].concat());
    assert!(exported.status.success());
    let imported = world.fed(&["store", "import"], &exported.stdout);
    assert!(imported.status.success(), "{}", crate::world::text(&imported.stderr));
    let ours = world.build(&[&two], &[]);
    assert_eq!(ours.code, 0, "{}", ours.err);
    assert!(judge.realise(std::slice::from_ref(&two)).status.success());
    let out = world.output(&two, "out");
    assert_eq!(world.facts(&out)["narHash"], judge.facts(std::slice::from_ref(&out))[0]["narHash"]);

    // The same by way of JSON: the paths that follow are those that Nix has given.
    let other = World::new();
    let text = closure.iter().find(|path| path.ends_with("-text")).unwrap();
    assert_eq!(other.tools, world.tools);
    assert_eq!(other.said(&["store", "add", "--text", other.file("text", "text").to_str().unwrap()]).trim(), *text);
    let shown = judge.said("nix", &["show-derivation", "--recursive", &two]);
    let added = other.fed(&["derivation", "add"], shown.as_bytes());
    assert!(crate::world::text(&added.stdout).lines().any(|line| line == two), "{}", crate::world::text(&added.stderr));
    assert_eq!(other.build(&[&two], &[]).code, 0);
    assert_eq!(other.facts(&out)["narHash"], world.facts(&out)["narHash"]);
}

#[test]
fn nix_works_on_the_store_afterwards() {
    let world = World::new();
    let Some(judge) = Judge::beside(&world) else { return };
    let leaf = leaf(&world, "leaf");
    let talk = Recipe::new(&world, "talk", "echo one; echo two >&2; printf 'three\\033[31m\\377'; ln -s $leaf $out");
    let talk = talk.needs(&world, "leaf", &leaf, "out");
    let derivation = world.derivation(&talk);
    assert_eq!(world.build(&[&derivation], &[]).code, 0);
    let out = world.output(&derivation, "out");

    judge.accepts("nix-store", &["--verify", "--check-contents"]);
    assert_eq!(judge.accepts("nix-store", &["--query", "--deriver", &out]).trim(), derivation);
    assert_eq!(judge.accepts("nix-store", &["--query", "--references", &out]).trim(), world.output(&leaf, "out"));
    let log = judge.on(world.root(), "nix", &["log", &derivation]).output().unwrap();
    assert_eq!(log.stdout, b"one\ntwo\nthree\x1b[31m\xff", "{}", crate::world::text(&log.stderr));
    // It finds nothing to do for what we have built, and we find nothing to do for what it builds.
    let there = judge.accepts("nix-store", &["--realise", &derivation]);
    assert_eq!(there.trim(), out);
    let theirs =
        world.derivation(&Recipe::new(&world, "theirs", "echo $leaf > $out").needs(&world, "leaf", &leaf, "out"));
    judge.accepts("nix-store", &["--realise", &theirs]);
    let ours = world.build(&[&theirs], &[]);
    assert_eq!((ours.code, ours.status(&theirs)), (0, "AlreadyValid"), "{}", ours.err);
    world.is_whole();
}

#[test]
fn a_fixed_output_has_the_path_of_its_contents_however_its_hash_is_spelled() {
    let world = World::new();
    let hello = world.file("hello", "hello");
    for (method, algorithm, spellings) in HELLO {
        let name = format!("fixed-{method}-{algorithm}");
        let recipe = Recipe::new(&world, &name, "printf hello > $out");
        let derivations: Vec<String> =
            spellings.iter().map(|hash| world.derivation(&recipe.clone().fixed(method, algorithm, hash))).collect();
        assert!(derivations.iter().all(|derivation| *derivation == derivations[0]), "{derivations:?}");
        let built = world.built(&recipe.fixed(method, algorithm, spellings[0]));
        let mut arguments = vec!["store", "add", "--name", &name, "--hash", algorithm];
        if method == "flat" {
            arguments.push("--flat");
        }
        arguments.push(hello.to_str().unwrap());
        assert_eq!(world.said(&arguments).trim(), built);
    }
    let text = Recipe::new(&world, "text", "printf hello > $out").fixed("text", "sha256", HELLO[4].2[0]);
    let built = world.built(&text);
    assert_eq!(world.said(&["store", "add", "--text", "--name", "text", hello.to_str().unwrap()]).trim(), built);
    assert!(world.facts(&built)["ca"].as_str().unwrap().starts_with("text:sha256:"));
    world.is_whole();
}

#[test]
fn a_wrong_hash_is_told_with_both_hashes() {
    let world = World::new();
    let hello = HELLO[4].2[2];
    for (method, algorithm, spellings) in HELLO {
        let recipe = Recipe::new(&world, "other", "printf hellO > $out").fixed(method, algorithm, spellings[0]);
        let ended = world.fails(&recipe, "HashMismatch");
        ended.says(&[
            "hash mismatch in fixed-output derivation",
            &format!("specified: {}", spellings[2]),
            &format!("got:       {algorithm}-"),
        ]);
        assert!(!ended.err.contains(&format!("got:       {}", spellings[2])));
    }
    // What is told is what would have been right.
    let ended = world.fails(
        &Recipe::new(&world, "other", "printf hello > $out").fixed("flat", "sha256", HELLO[5].2[2]),
        "HashMismatch",
    );
    ended.says(&[&format!("got:       {hello}")]);
}

/// What a derivation forbids its outputs, each with words of its own; a real Nix refuses the same.
#[test]
fn outputs_that_a_derivation_forbids_are_refused_with_the_way_that_leads_there() {
    let world = World::new();
    let text = world.add_file("text", "text");
    let middle = world.derivation(&Recipe::new(&world, "middle", "echo $text > $out").source("text", &text));
    let middle_out = world.output(&middle, "out");
    let base = |text: &str| text.strip_prefix("/nix/store/").unwrap().to_owned();
    let top = |attribute: &str, value: &str| {
        Recipe::new(&world, &format!("top-{attribute}"), "echo $middle > $out")
            .needs(&world, "middle", &middle, "out")
            .source("text", &text)
            .env(attribute, value)
    };
    let structured = |name: &str, checks: Value| {
        let script = format!("{OUT_OF_JSON} head -c 5000 /dev/zero > $out");
        let attributes = json!({ "PATH": format!("{}/bin", world.tools), "outputChecks": { "out": checks } });
        Recipe::new(
            &world,
            name,
            &script
                .replace("sed", &format!("{}/bin/sed", world.tools))
                .replace("head", &format!("{}/bin/head", world.tools)),
        )
        .structured(attributes)
    };
    let chain = format!("{} → {}", base(&middle_out), base(&text));
    let cases: Vec<(Recipe, Vec<String>)> = vec![
        (
            top("allowedReferences", "out"),
            vec!["is not allowed to refer to these paths".into(), "allowedReferences".into(), base(&middle_out)],
        ),
        (top("disallowedReferences", &middle_out), vec!["disallowedReferences".into(), base(&middle_out)]),
        (
            top("allowedRequisites", &middle_out),
            vec!["is not allowed to depend on these paths".into(), "allowedRequisites".into(), chain.clone()],
        ),
        (top("disallowedRequisites", &text), vec!["disallowedRequisites".into(), chain]),
        (structured("large", json!({ "maxSize": 4000 })), vec!["bytes; the derivation allows 4000 (maxSize)".into()]),
        (
            structured("large-closure", json!({ "maxClosureSize": 4001 })),
            vec!["the closure of the output".into(), "allows 4001 (maxClosureSize)".into()],
        ),
        (
            Recipe::new(&world, "refers-to-text", "printf $text > $out").source("text", &text).fixed(
                "nar",
                "sha256",
                &refers_hash(&world, &text),
            ),
            vec!["what is known by its hash alone may refer to nothing".into(), base(&text)],
        ),
        (Recipe::new(&world, "nothing", "true"), vec!["ended well but did not make its output ‘out’".into()]),
        (
            Recipe::new(&world, "half", "echo > $out").outputs(&["out", "dev"]),
            vec!["did not make its output ‘dev’".into()],
        ),
        (
            Recipe::new(&world, "tree", "mkdir $out").fixed("flat", "sha256", HELLO[4].2[0]),
            vec!["it is not a regular file".into(), "recursive".into()],
        ),
        (
            Recipe::new(&world, "run", "printf hello > $out; chmod +x $out").fixed("flat", "sha256", HELLO[4].2[0]),
            vec!["it is executable".into()],
        ),
    ];
    for (recipe, words) in &cases {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        world.fails(recipe, "OutputRejected").says(&words);
    }
    // Nobody refuses what is within the bounds.
    world.built(&structured("small", json!({ "maxSize": 6000, "maxClosureSize": 6000 })));
    world.built(&top("disallowedReferences", &text));
    world.is_whole();

    let Some(judge) = Judge::beside(&world) else { return };
    let derivations: Vec<String> = cases.iter().map(|(recipe, _)| world.derivation(recipe)).collect();
    judge.give(&derivations);
    let arguments: Vec<_> =
        ["--realise", "--keep-going"].into_iter().chain(derivations.iter().map(String::as_str)).collect();
    assert!(!judge.ask("nix-store", &arguments).status.success());
    let outputs: Vec<String> = derivations.iter().map(|derivation| world.output(derivation, "out")).collect();
    let arguments: Vec<_> =
        ["--check-validity", "--print-invalid"].into_iter().chain(outputs.iter().map(String::as_str)).collect();
    let invalid = judge.said("nix-store", &arguments);
    assert_eq!(invalid.lines().collect::<Vec<_>>(), outputs, "Nix took what we refuse");
}

/// The archive hash of a file that holds a store path, from the executor's own words.
fn refers_hash(world: &World, text: &str) -> String {
    let file = world.file("refers", text);
    let added = world.said(&["store", "add", file.to_str().unwrap()]);
    world.facts(added.trim())["narHash"].as_str().unwrap().to_owned()
}

#[test]
fn references_can_be_thrown_away_on_request() {
    let world = World::new();
    let text = world.add_file("text", "text");
    let script = format!(
        "out=$({0}/sed 's/.*\"outputs\":{{\"out\":\"\\([^\"]*\\)\".*/\\1/' .attrs.json); echo {text} > $out",
        format_args!("{}/bin", world.tools)
    );
    let recipe = |discard: bool| {
        Recipe::new(&world, "discards", &script)
            .source("text", &text)
            .structured(json!({ "unsafeDiscardReferences": { "out": discard } }))
    };
    assert_eq!(world.facts(&world.built(&recipe(false)))["references"], json!([text]));
    assert_eq!(world.facts(&world.built(&recipe(true)))["references"], json!([]));
}

#[test]
fn a_build_without_a_room_needs_a_relaxed_policy() {
    let world = World::new();
    // The host's /etc is among what such a build sees.
    let recipe = Recipe::new(&world, "no-chroot", "cat /etc/hostname > $out; ls /usr >> $out").env("__noChroot", "1");
    world.fails(&recipe, "InputRejected").says(&["‘__noChroot’", "sandbox = \"relaxed\""]);
    let derivation = world.derivation(&recipe);
    let ended = world.build(&[&derivation], &["--option", "sandbox", "relaxed"]);
    assert_eq!(ended.code, 0, "{}", ended.err);
    let hostname = fs::read_to_string("/etc/hostname").unwrap();
    assert!(world.read(&world.output(&derivation, "out")).starts_with(&hostname));
    // One that does not ask is in its room all the same.
    let ordinary = Recipe::new(&world, "ordinary", "ls /usr > $out 2>&1; true");
    let seen = world.read(&world.built_with(&ordinary, &["--option", "sandbox", "relaxed"]));
    assert!(seen.contains("No such file"), "{seen}");
}

#[test]
fn what_this_machine_does_not_have_is_refused_by_name() {
    let world = World::new();
    let recipe = |name: &str| Recipe::new(&world, name, "echo > $out");
    let needs = |features: &str| recipe("needs").env("requiredSystemFeatures", features);
    world
        .fails(&needs("big-parallel quantum"), "InputRejected")
        .says(&["it requires the feature ‘quantum’", "system-features"]);
    world.built_with(&needs("big-parallel quantum"), &["--option", "system-features", "quantum big-parallel"]);
    let foreign = recipe("foreign").set("system", "riscv64-linux");
    world.fails(&foreign, "InputRejected").says(&[
        "it is for ‘riscv64-linux’, and this machine builds for",
        std::env::consts::ARCH,
        "extra-platforms",
    ]);
    world.built_with(&foreign, &["--option", "extra-platforms", "riscv64-linux"]);
    let deps = recipe("host-deps").env("__impureHostDeps", "/usr/lib");
    world.fails(&deps, "InputRejected").says(&["‘/usr/lib’", "sandbox-paths"]);
    let floating = json!({ "out": { "method": "nar", "hashAlgo": "sha256" } });
    let impure = json!({ "out": { "method": "nar", "hashAlgo": "sha256", "impure": true } });
    let words = [["floating content-addressed", "anchorhold attach"], ["is impure", "outputHash"]];
    for (outputs, words) in [floating, impure].into_iter().zip(words) {
        let refused =
            world.fed(&["derivation", "add"], recipe("later").set("outputs", outputs).json().to_string().as_bytes());
        let said = crate::world::text(&refused.stderr);
        assert!(
            !refused.status.success()
                && words.iter().all(|word| said.contains(word))
                && said.contains("does not build these yet"),
            "{said}"
        );
    }
    world.is_whole();
}

#[test]
fn files_are_fetched_and_nothing_else_is() {
    let world = World::new();
    let source = world.file("source", "hello");
    let fetch = |url: &str| {
        Recipe::new(&world, "fetched", "").run_by("builtin:fetchurl", &[]).env("url", url).set("system", "builtin")
    };
    let url = format!("file://{}", source.display());
    let flat = |recipe: Recipe| recipe.fixed("flat", "sha256", HELLO[4].2[2]);
    assert_eq!(world.read(&world.built(&flat(fetch(&url)))), "hello");
    let executable =
        fetch(&url).env("executable", "1").set("name", "program").fixed("nar", "sha256", &executable_hash(&world));
    let built = world.built(&executable);
    assert_eq!(std::os::unix::fs::MetadataExt::mode(&fs::metadata(world.real(&built)).unwrap()) & 0o777, 0o555);

    let other = |recipe: Recipe| recipe.set("name", "other");
    for (recipe, words) in [
        (flat(fetch("https://localhost/source")), ["‘file://’ URLs only", "‘https://localhost/source’"]),
        (flat(fetch(&format!("file://{}", world.path("absent").display()))), ["absent", "No such file"]),
        (flat(fetch(&format!("file://{}", world.directory.path().display()))), ["copying", "it is not a regular file"]),
        (flat(fetch("file:///dev/zero")), ["copying /dev/zero", "it is not a regular file"]),
        (fetch(&url), ["builtin:fetchurl", "output hash is declared"]),
        (flat(fetch(&url).env("unpack", "1")), ["does not unpack", "derivation that uses the file"]),
        (flat(fetch(&url).run_by("builtin:buildenv", &[])), ["‘builtin:buildenv’ is unknown", "builtin:fetchurl"]),
    ] {
        world.fails(&other(recipe), "PermanentFailure").says(&words);
    }
    fs::write(&source, "hellO").unwrap();
    world.fails(&other(flat(fetch(&url))), "HashMismatch");
}

fn executable_hash(world: &World) -> String {
    use std::os::unix::fs::PermissionsExt;
    let file = world.file("executable", "hello");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    world.facts(&world.add(&file))["narHash"].as_str().unwrap().to_owned()
}

#[test]
fn outputs_that_are_there_are_left_as_they_are_and_the_missing_ones_are_built() {
    let world = World::new();
    // It writes something else each time.
    let script = "head -c 16 /proc/sys/kernel/random/uuid > $out; cp $out $dev; echo $out >> $dev";
    let derivation = world.derivation(&Recipe::new(&world, "twice", script).outputs(&["out", "dev"]));
    assert_eq!(world.build(&[&derivation], &[]).code, 0);
    let (out, dev) = (world.output(&derivation, "out"), world.output(&derivation, "dev"));
    let before = world.read(&out);
    world.said(&["store", "gc", "--delete", &dev]);
    let ended = world.build(&[&derivation], &[]);
    assert_eq!((ended.code, ended.status(&derivation)), (0, "Built"), "{}", ended.err);
    assert_eq!(world.read(&out), before);
    assert!(!world.read(&dev).starts_with(&before), "the missing output was built anew");
    world.is_whole();
    assert_eq!(world.build(&[&derivation], &[]).status(&derivation), "AlreadyValid");
}

/// The build directory lies on another file system than the store, so that outputs are copied instead of moved.
#[test]
fn outputs_from_another_file_system_are_the_same() {
    use std::os::unix::fs::MetadataExt;
    let (moved, copied) = (World::new(), World::new());
    let Ok(directory) = tempfile::tempdir_in("/dev/shm") else { return anchorhold_tests::skip("there is no /dev/shm") };
    let device = |path: &std::path::Path| fs::metadata(path).unwrap().dev();
    if device(directory.path()) == device(copied.directory.path()) {
        return anchorhold_tests::skip("directories for temporary files and /dev/shm are on one file system");
    }
    let builds = directory.path().join("builds");
    let option = ["--option", "build-dir", builds.to_str().unwrap()];
    for name in ["forms", "parts", "self", "link", "fixed-nar-sha256"] {
        let recipe = |world| recipes(world).into_iter().find(|recipe| recipe.json()["name"] == name).unwrap();
        let here = moved.built(&recipe(&moved));
        let there = copied.built_with(&recipe(&copied), &option);
        assert_eq!(here, there);
        let facts =
            |world: &World| ["narHash", "narSize", "references", "ca"].map(|key| world.facts(&here)[key].clone());
        assert_eq!(facts(&moved), facts(&copied), "{name}");
    }
    let failing = Recipe::new(&copied, "failing", "mkdir $out; echo x > $out/x; exit 1");
    copied.fails_with(&failing, "PermanentFailure", &option);
    assert_eq!(fs::read_dir(&builds).unwrap().count(), 0, "something is left");
    copied.is_whole();
}

#[test]
fn a_second_build_that_gives_something_else_is_told_of_every_output() {
    let world = World::new();
    let random = "cat /proc/sys/kernel/random/uuid";
    let script = format!("{random} > $out; {random} > $dev; echo same > $doc");
    let recipe = Recipe::new(&world, "random", &script).outputs(&["out", "dev", "doc"]);
    let derivation = world.derivation(&recipe);
    let before = world.build(&[&derivation], &["--check"]);
    assert_eq!(before.code, 1);
    before.says(&["there is nothing to compare with", "without --check"]);
    assert_eq!(world.build(&[&derivation], &[]).code, 0);
    let contents = world.read(&world.output(&derivation, "out"));
    let ended = world.fails_with(&recipe, "NotDeterministic", &["--check"]);
    ended.says(&["may not be deterministic", "the output ‘out’ differs", "the output ‘dev’ differs", "sha256"]);
    assert!(!ended.err.contains("‘doc’ differs"), "{}", ended.err);
    ended.says(&["for the log of the second build: anchorhold store log", "what often differs", "add --keep-failed"]);
    let kept = world.fails_with(&recipe, "NotDeterministic", &["--check", "--keep-failed"]);
    let second = format!("{}.check", world.real(&world.output(&derivation, "out")).display());
    kept.says(&[&second]);
    assert_ne!(fs::read_to_string(&second).unwrap(), contents);
    assert_eq!(world.read(&world.output(&derivation, "out")), contents, "the first is what stays");
    world.is_whole();
    let same = world.derivation(&Recipe::new(&world, "same", "echo $out > $out"));
    assert_eq!(world.build(&[&same], &[]).code, 0);
    // Of what is there already, the build that made it is told.
    let there = world.build(&[&same], &[]);
    let there = there.result(&same);
    assert_eq!(there["status"], "AlreadyValid");
    assert!(there["account"]["wall_seconds"].is_number() && there["seal"].is_object(), "{there}");
    let again = world.build(&[&same], &["--check"]);
    assert_eq!((again.code, again.status(&same)), (0, "Built"), "{}", again.err);
}

#[test]
fn a_failure_stops_what_needs_it_and_with_keep_going_nothing_else() {
    let world = World::new();
    let fail = world.derivation(&Recipe::new(&world, "a-fails", "exit 3"));
    let good = world.derivation(&Recipe::new(&world, "good", "echo > $out"));
    let above = Recipe::new(&world, "above", "echo > $out").needs(&world, "fail", &fail, "out");
    let above = world.derivation(&above.needs(&world, "good", &good, "out"));
    let top = world.derivation(&Recipe::new(&world, "top", "echo > $out").needs(&world, "above", &above, "out"));
    let mut all = [fail.clone(), good.clone(), above.clone(), top.clone()];
    let ended = world.build(&all, &["--keep-going"]);
    let statuses: Vec<_> = all.iter().map(|derivation| ended.status(derivation)).collect();
    assert_eq!(statuses, ["PermanentFailure", "Built", "DependencyFailed", "DependencyFailed"], "{}", ended.err);
    assert_eq!(ended.code, 100);
    // Each class has its bit.
    let mismatch =
        world.derivation(&Recipe::new(&world, "mismatch", "echo > $out").fixed("flat", "sha256", HELLO[4].2[0]));
    let slow = world.derivation(&Recipe::new(&world, "slow", "while :; do :; done"));
    let ended = world.build(&[&mismatch], &[]);
    assert_eq!(ended.code, 102, "{}", ended.err);
    let ended = world.build(&[fail.clone(), mismatch.clone(), slow], &["--keep-going", "--timeout", "1s"]);
    assert_eq!(ended.code, 96 + 4 + 2 + 1, "{}", ended.err);
    // Without it, and with one job, nothing is begun behind the failure: builds are begun in the order of their paths.
    all.sort();
    let more: Vec<String> =
        (0..8).map(|number| world.derivation(&Recipe::new(&world, &format!("more-{number}"), "echo > $out"))).collect();
    let ended = world.build(&[std::slice::from_ref(&fail), &more[..]].concat(), &["--jobs", "1"]);
    assert_eq!(ended.code, 100);
    for derivation in more {
        let begun_before = derivation < fail;
        assert_eq!(ended.status(&derivation), if begun_before { "Built" } else { "-" }, "{}", ended.err);
    }
}

#[test]
fn a_failed_build_is_kept_on_request_as_a_copy_of_the_callers_own() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let world = World::new();
    let script = "echo mine > file; mkdir sub; echo x > sub/run; chmod 4755 sub/run 2>/dev/null || chmod 755 sub/run; mkfifo pipe; chmod 000 file; exit 1";
    let recipe = Recipe::new(&world, "kept", script).env("passAsFile", "long").env("long", "long text");
    let ended = world.fails(&recipe, "PermanentFailure");
    ended.says(&["--keep-failed"]);
    assert_eq!(fs::read_dir(world.path("tmp")).unwrap().count(), 0, "nothing is kept unasked");
    let ended = world.fails_with(&recipe, "PermanentFailure", &["--keep-failed"]);
    let kept = ended.results[0]["kept"].as_str().unwrap_or_else(|| panic!("{}", ended.err)).to_owned();
    ended.says(&[&kept, "anchorhold shell"]);
    let top = fs::metadata(&kept).unwrap();
    let me = nix::unistd::geteuid().as_raw();
    assert_eq!((top.uid(), top.mode() & 0o777), (me, 0o700));
    let file = fs::metadata(format!("{kept}/build/file")).unwrap();
    assert_eq!(file.uid(), me);
    fs::set_permissions(format!("{kept}/build/file"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(fs::read_to_string(format!("{kept}/build/file")).unwrap(), "mine\n");
    let run = fs::metadata(format!("{kept}/build/sub/run")).unwrap();
    assert_eq!((run.uid(), run.mode() & 0o6111), (me, 0o111), "executable, and nobody else by it");
    let passed = fs::read_dir(format!("{kept}/build"))
        .unwrap()
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().starts_with(".attr-"));
    assert_eq!(fs::read_to_string(passed.unwrap().path()).unwrap(), "long text");

    // One whose outputs are refused has failed as well.
    let refused = "echo mine > file; mkfifo $out; echo said";
    let mismatch = Recipe::new(&world, "mismatch", "echo mine > file; echo said > $out; echo said");
    for (recipe, class) in [
        (Recipe::new(&world, "refused", refused), "OutputRejected"),
        (mismatch.fixed("flat", "sha256", HELLO[4].2[0]), "HashMismatch"),
    ] {
        let ended = world.fails_with(&recipe, class, &["--keep-failed"]);
        let kept = ended.results[0]["kept"].as_str().unwrap_or_else(|| panic!("{}", ended.err)).to_owned();
        assert_eq!(fs::read_to_string(format!("{kept}/build/file")).unwrap(), "mine\n");
        ended.says(&[&kept, "> said", "store log", "to try again"]);
    }
}
