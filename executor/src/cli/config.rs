//! `anchorhold config show`: every setting, its value, where it came from, and its default.
//!
//! `--json` prints one object: each setting's name with an object of `value`, `default` (both as in a file, in JSON), `origin`
//! (an object: `source` is `default`, `file` with `path` and `line`, or `option`), `locked` (whether the system's file locks
//! it) and `description`.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anchorhold::config::{Config, ConfigError, Origin, Sources};
use clap::{ArgMatches, Args, Command};
use serde_json::{Value, json};

use super::{Subcommand, command, complain, options};

pub const SUBCOMMAND: Subcommand = Subcommand { name: "config", command: config, run };

fn config() -> Command {
    Command::new("config").about("Show the settings").subcommand_required(true).arg_required_else_help(true).subcommand(
        command::<ShowOptions>("show", "Print every setting, its value, where it came from, and its default"),
    )
}

/// Where settings come from besides the files of the system and the user.
#[derive(Debug, Args)]
pub struct ConfigOptions {
    /// Read settings from this file too
    #[arg(long, value_name = "FILE", help_heading = "Settings")]
    config: Vec<PathBuf>,

    /// Give a setting a value
    #[arg(long, num_args = 2, value_names = ["NAME", "VALUE"], help_heading = "Settings")]
    option: Vec<String>,
}

impl ConfigOptions {
    /// All settings with their values.
    pub fn load(&self) -> Result<Config, ConfigError> {
        self.load_from(Sources::standard())
    }

    /// As [`load`](Self::load), without the user's file: where the environment does not say whose that is.
    pub fn load_without_user(&self) -> Result<Config, ConfigError> {
        self.load_from(Sources { user: None, ..Sources::standard() })
    }

    /// The files that were given, for a process that may be started elsewhere.
    pub fn files(&self) -> io::Result<Vec<PathBuf>> {
        self.config.iter().map(std::path::absolute).collect()
    }

    /// The settings that were given, each a name and a value.
    pub fn pairs(&self) -> Vec<(String, String)> {
        let (pairs, _) = self.option.as_chunks::<2>();
        pairs.iter().map(|[name, value]| (name.clone(), value.clone())).collect()
    }

    /// Gives a setting a value, as if it had been given.
    pub fn give(&mut self, name: &str, value: &str) {
        self.option.extend([name.to_owned(), value.to_owned()]);
    }

    fn load_from(&self, mut sources: Sources) -> Result<Config, ConfigError> {
        sources.files.clone_from(&self.config);
        sources.options = self.pairs();
        Config::load(&sources)
    }

    /// The same as words of a command line, with files that can be found from anywhere.
    pub fn arguments(&self) -> Vec<OsString> {
        let file = |file: &PathBuf| std::path::absolute(file).unwrap_or_else(|_| file.clone()).into();
        let files = self.config.iter().flat_map(|path| ["--config".into(), file(path)]);
        let pairs = self.pairs().into_iter().flat_map(|(name, value)| ["--option".into(), name.into(), value.into()]);
        files.chain(pairs).collect()
    }
}

#[derive(Debug, Args)]
struct ShowOptions {
    #[command(flatten)]
    config: ConfigOptions,

    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

fn run(matches: &ArgMatches) -> ExitCode {
    let Some((_, matches)) = matches.subcommand() else { return ExitCode::FAILURE };
    let options: ShowOptions = options(matches);
    let config = match options.config.load() {
        Ok(config) => config,
        Err(error) => {
            complain(error);
            return ExitCode::FAILURE;
        }
    };
    let text = if options.json { format!("{:#}\n", in_json(&config)) } else { in_words(&config) };
    // A reader that has seen enough is no failure of ours.
    let _ = io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

fn in_words(config: &Config) -> String {
    let mut rows = vec![["SETTING", "VALUE", "FROM", "DEFAULT"].map(str::to_owned)];
    for one in config.iter() {
        let origin = if one.locked.is_some() { format!("{} (locked)", one.origin) } else { one.origin.to_string() };
        let default = one.setting.default_value().to_string();
        rows.push([one.setting.name.to_owned(), one.value.to_string(), origin, default]);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let (name, value, from) = (width(0), width(1), width(2));
    let line = |row: &[String; 4]| {
        let [a, b, c, d] = row;
        format!("{a:<name$}  {b:<value$}  {c:<from$}  {d}\n")
    };
    rows.iter().map(line).collect()
}

fn in_json(config: &Config) -> Value {
    let settings = config.iter().map(|one| {
        let origin = match &one.origin {
            Origin::Default => json!({"source": "default"}),
            Origin::File { path, line } => json!({"source": "file", "path": path.to_string_lossy(), "line": line}),
            Origin::Option => json!({"source": "option"}),
        };
        let value = json!({
            "value": one.value,
            "default": one.setting.default_value(),
            "origin": origin,
            "locked": one.locked.is_some(),
            "description": one.setting.description,
        });
        (one.setting.name.to_owned(), value)
    });
    Value::Object(settings.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_show_every_setting_with_its_origin() {
        let sources = Sources { options: vec![("cores".into(), "3".into())], ..Sources::default() };
        let config = Config::load(&sources).unwrap();
        let text = in_words(&config);
        assert_eq!(text.lines().count(), 1 + config.iter().count());
        let row = text.lines().find(|line| line.starts_with("cores ")).unwrap();
        assert_eq!(row.split_whitespace().collect::<Vec<_>>(), ["cores", "3", "--option", "0"]);
        let value = in_json(&config);
        assert_eq!(value["cores"]["value"], 3);
        assert_eq!(value["cores"]["origin"]["source"], "option");
        assert_eq!(value["sandbox"]["default"], true);
        assert_eq!(value.as_object().unwrap().len(), config.iter().count());
    }
}
