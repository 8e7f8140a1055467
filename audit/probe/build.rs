//! Finds the files of probes, so that whoever adds one adds a file and changes no other.

use std::path::Path;
use std::{env, fs};

fn main() {
    let folder = Path::new(&env::var("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("src/probes");
    println!("cargo::rerun-if-changed={}", folder.display());
    let mut names: Vec<String> = fs::read_dir(&folder)
        .expect("the folder of probes can be read")
        .filter_map(|entry| entry.expect("its entries too").file_name().into_string().ok())
        .filter_map(|name| name.strip_suffix(".rs").map(str::to_owned))
        .collect();
    names.sort();
    let mut text = String::new();
    for name in &names {
        let file = folder.join(format!("{name}.rs"));
        text.push_str(&format!("#[path = {file:?}]\npub mod {name};\n"));
    }
    text.push_str("\n/// The probes of every file, file by file.\npub const FILES: &[&[crate::probe::Probe]] = &[\n");
    for name in &names {
        text.push_str(&format!("    {name}::PROBES,\n"));
    }
    text.push_str("];\n");
    let target = Path::new(&env::var("OUT_DIR").expect("cargo sets it")).join("probes.rs");
    fs::write(target, text).expect("the folder for generated files can be written");
}
