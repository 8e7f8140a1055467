//! `anchorhold explain`: the plan, step by step; runs nothing.

use std::process::ExitCode;

use anchorhold_sandbox::Plan;
use anchorhold_sandbox::outcome::exit_status;
use anchorhold_sandbox::plan::{Place, Stage};
use clap::Args;

use super::room_options::RoomOptions;
use super::{Subcommand, command, complain, exit_code, options};

pub const SUBCOMMAND: Subcommand = Subcommand {
    name: "explain",
    command: || command::<ExplainOptions>("explain", "Print the plan of a room, step by step; run nothing"),
    run,
};

#[derive(Debug, Args)]
struct ExplainOptions {
    #[command(flatten)]
    room: RoomOptions,

    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

fn run(matches: &clap::ArgMatches) -> ExitCode {
    let options: ExplainOptions = options(matches);
    let plan = options.room.room().and_then(|mut room| {
        // A plan can be read without a command to run.
        if room.process.program.as_os_str().is_empty() {
            room.process.program = "COMMAND".into();
        }
        let host = options.room.host(&room);
        Plan::compile(&room, &host).map_err(|refusal| refusal.to_string())
    });
    let plan = match plan {
        Ok(plan) => plan,
        Err(why) => {
            complain(why);
            return exit_code(exit_status::NOT_STARTED);
        }
    };
    if options.json {
        match serde_json::to_string_pretty(&plan) {
            Ok(text) => println!("{text}"),
            Err(error) => {
                complain(error);
                return ExitCode::FAILURE;
            }
        }
        return ExitCode::SUCCESS;
    }
    print!("{}", in_words(&plan));
    ExitCode::SUCCESS
}

/// The plan for people.
fn in_words(plan: &Plan) -> String {
    use std::fmt::Write;
    let mut text = String::new();
    let mut place = None;
    for (number, step) in plan.steps.iter().enumerate() {
        if place != Some(step.place) {
            place = Some(step.place);
            let heading = match step.place {
                Place::Supervisor => "The supervisor, outside:",
                Place::Warden if step.stage == Stage::Network => "The warden, at the same time:",
                Place::Warden => "The warden, between:",
                Place::Room => "The room's first process:",
            };
            let _ = writeln!(text, "{heading}");
        }
        let _ = writeln!(text, "{number:4}  {:<12}  {}", step.action.layer().name(), step.action);
    }
    let _ = writeln!(text, "The supervisor reads every layer back from the kernel; then the first process becomes:");
    let words: Vec<_> = std::iter::once(&plan.room.process.program)
        .chain(&plan.room.process.arguments)
        .map(ToString::to_string)
        .collect();
    let _ = writeln!(text, "      {}", words.join(" "));
    for layer in &plan.room.without {
        let _ = writeln!(text, "Without {layer}: open is {}.", layer.left_open());
    }
    for weakening in &plan.weakenings {
        let _ = writeln!(text, "Weaker: {}: {}.", weakening.layer, weakening.what);
    }
    text
}
