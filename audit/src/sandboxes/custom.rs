//! Any other sandbox, by a command line of the shell in which `{}` stands for the battery.

use anchorhold_probe::observation::Launch;

use super::{Ground, Inside, Sandbox, line, text};

/// A command line. `{folder}` in it is the folder that holds the probe program and the input, `{scratch}` one to write to;
/// both are at these paths inside as well. `{outside}` is the observers' own, for controls.
#[derive(Debug)]
pub struct Custom(pub String);

impl Sandbox for Custom {
    fn name(&self) -> String {
        self.0.clone()
    }

    fn version(&self, _ground: &Ground) -> Result<String, String> {
        Ok("as the command line says".into())
    }

    fn prepare(&self, ground: &Ground) -> Result<Inside, String> {
        Ok(Inside::of_host(ground))
    }

    fn launch(&self, ground: &Ground, words: &[String]) -> Result<Launch, String> {
        let quoted: Vec<String> = words.iter().map(|word| format!("'{}'", word.replace('\'', r"'\''"))).collect();
        let command = self
            .0
            .replace("{folder}", &text(&ground.shown))
            .replace("{scratch}", &text(&ground.scratch))
            .replace("{outside}", &text(&ground.folder.join("outside")))
            .replace("{}", &quoted.join(" "));
        Ok(line(["/bin/sh".to_owned(), "-c".to_owned(), command]))
    }
}
