//! The command line, read by hand: the program must stay small and free of surprises inside strange sandboxes.

use std::ffi::OsString;
use std::path::PathBuf;

use anchorhold_probe::world::World;

/// What was asked for.
#[derive(Debug)]
pub enum Command {
    /// The catalogue.
    List,
    /// The battery.
    Run(Box<Run>),
    /// Stay, with everything open to the outside that can be opened, until somebody there has looked.
    Hold(Box<Run>),
    /// Make an output that whoever takes it over should not take as it is.
    Output(String, Box<Run>),
    /// Try to open a file of this name as somebody else: in these folders, and by the root of this process.
    Look {
        /// The file.
        name: String,
        /// The process.
        process: i32,
        /// Where it is looked for.
        folders: Vec<PathBuf>,
    },
    /// Be the parent of a sandbox and watch from outside, for the runner.
    Observe,
    /// Be somebody to be looked at.
    Sleep,
}

/// How to run the battery.
#[derive(Debug, Default)]
pub struct Run {
    /// Where the observers are.
    pub world: World,
    /// Ids, or beginnings of ids up to a dot (`net`, `proc.sys`); empty for all.
    pub only: Vec<String>,
    /// Where the lines go as well, for sandboxes that change what is printed.
    pub output: Option<PathBuf>,
}

impl Run {
    /// Whether the probe of this id was asked for.
    pub fn wants(&self, id: &str) -> bool {
        self.only.is_empty()
            || self
                .only
                .iter()
                .any(|word| id.strip_prefix(word.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
    }
}

/// Reads the arguments after the program's name. The error is one line for a person.
pub fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Command, String> {
    let mut words = arguments.map(|word| word.into_string().map_err(|word| format!("{word:?} is not UTF-8")));
    match words.next().transpose()?.as_deref() {
        Some("list") => Ok(Command::List),
        Some("observe") => Ok(Command::Observe),
        Some("sleep") => Ok(Command::Sleep),
        Some("run") => options(words).map(Command::Run),
        Some("hold") => options(words).map(Command::Hold),
        Some("output") => {
            let kind = words.next().transpose()?.ok_or(USAGE)?;
            options(words).map(|run| Command::Output(kind, run))
        }
        Some("look") => {
            let name = words.next().transpose()?.ok_or(USAGE)?;
            let process = words.next().transpose()?.and_then(|word| word.parse().ok()).ok_or(USAGE)?;
            let folders = words.map(|word| word.map(PathBuf::from)).collect::<Result<_, _>>()?;
            Ok(Command::Look { name, process, folders })
        }
        _ => Err(USAGE.to_owned()),
    }
}

const USAGE: &str = "usage: anchorhold-probe list | run [--world JSON] [--only ID]... [--output FILE]";

fn options(mut words: impl Iterator<Item = Result<String, String>>) -> Result<Box<Run>, String> {
    let mut run = Run::default();
    while let Some(word) = words.next().transpose()? {
        let value = words.next().transpose()?.ok_or_else(|| format!("{word} needs a value; {USAGE}"))?;
        match word.as_str() {
            "--world" => {
                run.world =
                    serde_json::from_str(&value).map_err(|error| format!("--world is not understood: {error}"))?;
            }
            "--only" => run.only.push(value),
            // In a build, only the builder's environment tells where the output goes.
            "--output" => match value.strip_prefix('$') {
                Some(name) => run.output = std::env::var_os(name).map(PathBuf::from),
                None => run.output = Some(value.into()),
            },
            _ => return Err(format!("{word} is unknown; {USAGE}")),
        }
    }
    Ok(Box::new(run))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_chosen_by_whole_words() {
        let run = Run { only: vec!["net".into(), "fs.canary.read".into()], ..Run::default() };
        assert!(run.wants("net.route"));
        assert!(run.wants("fs.canary.read"));
        assert!(!run.wants("fs.canary.write"));
        assert!(!run.wants("network.route"));
    }

    #[test]
    fn an_unknown_field_of_the_world_is_told() {
        let words = ["run", "--world", r#"{"moon": 1}"#].map(OsString::from);
        let problem = parse(words.into_iter()).expect_err("nobody watches the moon");
        assert!(problem.contains("moon"), "{problem}");
    }
}
