//! Archives by hand, for measuring and for comparing with other programs: `dump TREE`, `restore TREE < ARCHIVE`,
//! `survey TREE [STORE-PATH…]` (hash, size and references in one pass), `scan < FILE`, `hash < FILE`.

use std::error::Error;
use std::io::{BufReader, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::Path;

use anchorhold::hash::{Algorithm, Hasher};
use anchorhold::nar::references::ReferenceScanner;
use anchorhold::{nar, tree};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let started = std::time::Instant::now();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["dump", path] => {
            let (parent, name) = tree::place(Path::new(path))?;
            nar::dump(parent.as_fd(), &name, std::io::stdout().lock())?;
        }
        ["restore", path] => {
            let (parent, name) = tree::place(Path::new(path))?;
            let source = BufReader::with_capacity(256 * 1024, std::io::stdin().lock());
            nar::restore(&mut nar::Reader::new(source), parent.as_fd(), &name)?;
        }
        ["survey", path, candidates @ ..] => {
            let (parent, name) = tree::place(Path::new(path))?;
            let candidates: Vec<_> = candidates.iter().map(|path| path.parse()).collect::<Result<_, _>>()?;
            let survey = nar::pass::survey(parent.as_fd(), &name, candidates)?;
            println!("{} {}", survey.hash, survey.size);
            survey.references.iter().for_each(|path| println!("{path}"));
        }
        [what @ ("scan" | "hash")] => {
            let candidates =
                (0..1000).map(|number| format!("{number:0>32}-x").parse()).collect::<Result<Vec<_>, _>>()?;
            let mut scanner = ReferenceScanner::new(candidates);
            let mut hasher = Hasher::new(Algorithm::Sha256);
            let mut buffer = vec![0; 256 * 1024];
            loop {
                let count = std::io::stdin().lock().read(&mut buffer)?;
                match *what {
                    _ if count == 0 => break,
                    "scan" => scanner.write_all(&buffer[..count])?,
                    _ => hasher.update(&buffer[..count]),
                }
            }
        }
        _ => return Err("give one of: dump TREE, restore TREE, survey TREE [STORE-PATH…], scan, hash".into()),
    }
    eprintln!("{:.3} s", started.elapsed().as_secs_f64());
    Ok(())
}
