use std::io;
use std::sync::Arc;
use std::time::Instant;

use indicatif::{ProgressDrawTarget, TermLike};
use serde_json::Value;

use super::*;

/// What was written, one entry for each write.
#[derive(Clone, Default)]
struct Writes(Arc<Mutex<Vec<Vec<u8>>>>);

impl Write for Writes {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().push(bytes.to_vec());
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Writes {
    fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().iter().map(|write| String::from_utf8(write.clone()).unwrap()).collect()
    }
}

fn build(id: u64, name: &str, needs: &[u64]) -> Build {
    Build {
        id: BuildId(id),
        drv_path: format!("/nix/store/n51kmbn8n4gk400r3sgj0hjmszkazsbj-{name}.drv"),
        name: name.into(),
        outputs: vec!["out".into()],
        needs: needs.iter().map(|id| BuildId(*id)).collect(),
    }
}

fn failure() -> Ending {
    Ending::Failed(Failure {
        class: "permanent".into(),
        reason: "failed with exit code 3".into(),
        log_tail: vec![b"fail\x1b]0;x\x07ing".to_vec()],
        advice: vec!["For full logs, run 'anchorhold store log x'.".into()],
    })
}

/// Two builds of three, one of which fails, their output in pieces.
fn tell(reporter: &dyn Reporter) {
    let builds = [build(1, "a", &[]), build(2, "b", &[1]), build(3, "c", &[1])];
    let log = |id, bytes| reporter.report(Event::Log { id: BuildId(id), bytes });
    reporter.report(Event::GraphKnown { builds: &builds });
    reporter.report(Event::Started(&builds[0]));
    log(1, b"hel");
    reporter.report(Event::Message { level: Level::Warn, text: "between" });
    reporter.report(Event::Message { level: Level::Debug, text: "not shown" });
    log(1, b"lo\n@nix {\"action\":\"setPhase\",\"phase\":\"build\x1bPhase\"}\n");
    log(
        1,
        b"@nix {\"action\":\"setPhase\",\"phase\":\"buildPhase\"}\n@nix {\"action\":\"start\",\"id\":1}\nred \x1b[31",
    );
    log(1, b"m\x1b[2Jx");
    reporter.report(Event::Finished { id: BuildId(1), ending: &Ending::Done, duration: Duration::from_secs(1) });
    reporter.report(Event::Started(&builds[2]));
    reporter.report(Event::Finished { id: BuildId(3), ending: &failure(), duration: Duration::from_secs(63) });
    let left_out = Ending::DependencyFailed;
    reporter.report(Event::Finished { id: BuildId(2), ending: &left_out, duration: Duration::ZERO });
    reporter.report(Event::AllDone);
}

#[test]
fn raw_lines_are_whole_and_each_one_write() {
    let writes = Writes::default();
    tell(&*raw_to(writes.clone(), Level::Info, false));
    let dir = "/nix/store/n51kmbn8n4gk400r3sgj0hjmszkazsbj";
    assert_eq!(
        writes.lines(),
        [
            format!("these 3 derivations will be built:\n  {dir}-a.drv\n  {dir}-b.drv\n  {dir}-c.drv\n"),
            format!("building '{dir}-a.drv'...\n"),
            "warning: between\n".into(),
            "a> hello\n".into(),
            // No JSON because of the control character in it, so a line like any other; the escape and what it begins go.
            "a> @nix {\"action\":\"setPhase\",\"phase\":\"build\n".into(),
            "a> red x\n".into(),
            format!("building '{dir}-c.drv'...\n"),
            format!(
                "error: builder for '{dir}-c.drv' failed with exit code 3;\n       last 1 log lines:\n       > failing\n       \
                 For full logs, run 'anchorhold store log x'.\n"
            ),
            format!("error: '{dir}-b.drv' was not built: a derivation that it needs failed\n"),
        ]
    );
}

#[test]
fn lines_of_many_threads_do_not_mix() {
    let writes = Writes::default();
    let reporter = raw_to(writes.clone(), Level::Info, false);
    std::thread::scope(|scope| {
        for id in 0..4 {
            let reporter = &reporter;
            scope.spawn(move || {
                reporter.report(Event::Started(&build(id, &format!("b{id}"), &[])));
                for _ in 0..200 {
                    reporter.report(Event::Log { id: BuildId(id), bytes: b"one " });
                    reporter.report(Event::Log { id: BuildId(id), bytes: b"line\n" });
                }
            });
        }
    });
    let lines = writes.lines();
    let logged = |id| lines.iter().filter(|line| **line == format!("b{id}> one line\n")).count();
    assert_eq!([logged(0), logged(1), logged(2), logged(3)], [200; 4]);
    assert_eq!(lines.len(), 804);
}

fn parsed(writes: &Writes) -> Vec<Value> {
    let lines = writes.lines();
    lines.iter().map(|line| serde_json::from_str(line.strip_prefix("@nix ").unwrap()).unwrap()).collect()
}

#[test]
fn json_lines_have_the_shapes_of_nix() {
    let writes = Writes::default();
    tell(&*internal_json_to(writes.clone(), Level::Info));
    // What Nix 2.8 wrote for such a build, but for the numbers and the store.
    let recorded = r#"{"action":"start","id":0,"level":0,"text":"","type":102}
{"action":"start","id":1,"level":0,"text":"","type":104}
{"action":"start","fields":["/nix/store/n51kmbn8n4gk400r3sgj0hjmszkazsbj-a.drv","",1,1],"id":2,"level":3,"text":"building '/nix/store/n51kmbn8n4gk400r3sgj0hjmszkazsbj-a.drv'","type":105}
{"action":"result","fields":[0,3,1,0],"id":1,"type":105}
{"action":"result","fields":["hello"],"id":2,"type":101}
{"action":"result","fields":["buildPhase"],"id":2,"type":104}
{"action":"result","fields":[1,3,0,0],"id":1,"type":105}
{"action":"stop","id":2}
{"action":"result","fields":[1,2,0,1],"id":1,"type":105}
{"action":"stop","id":1}
{"action":"stop","id":0}"#;
    let ours = writes.lines().concat();
    let first = u64::from(std::process::id()) << 32;
    let mut from = 0;
    for line in recorded.lines() {
        let mut wanted: Value = serde_json::from_str(line).unwrap();
        wanted["id"] = (first + wanted["id"].as_u64().unwrap()).into();
        let wanted = format!("@nix {wanted}\n");
        let at = ours[from..].find(&wanted).unwrap_or_else(|| panic!("{wanted} is missing, or too early, in\n{ours}"));
        from += at + wanted.len();
    }
}

#[test]
fn json_tells_of_a_failure_as_nix_does_and_leaves_no_activity_open() {
    let writes = Writes::default();
    tell(&*internal_json_to(writes.clone(), Level::Info));
    let events = parsed(&writes);
    let errors: Vec<_> = events.iter().filter(|event| event["action"] == "msg" && event["level"] == 0).collect();
    assert_eq!(errors.len(), 1);
    let text = errors[0]["msg"].as_str().unwrap();
    assert!(
        text.starts_with("error: builder for '/nix/store/n51kmbn8n4gk400r3sgj0hjmszkazsbj-c.drv' failed with exit")
    );
    let keys: Vec<_> = errors[0].as_object().unwrap().keys().cloned().collect();
    assert_eq!(keys, ["action", "column", "file", "level", "line", "msg", "raw_msg"]);
    let ids = |action| {
        let mut ids: Vec<_> =
            events.iter().filter(|event| event["action"] == action).map(|event| &event["id"]).collect();
        ids.sort_by_key(|id| id.as_u64());
        ids
    };
    assert_eq!(ids("start"), ids("stop"));
    assert_eq!(ids("start").len(), 4);
}

#[test]
fn a_builders_message_is_bounded_and_of_a_builder_only() {
    use message::{BuilderMessage, parse};
    assert_eq!(parse(b"@nix {\"action\":\"setPhase\",\"phase\":\"x\"}"), Some(BuilderMessage::Phase("x".into())));
    assert_eq!(parse(b"@nix {\"action\":\"stop\",\"id\":7}"), Some(BuilderMessage::Ignored));
    assert_eq!(parse(b"@nix {\"action\":\"msg\",\"level\":0,\"msg\":\"t\"}"), Some(BuilderMessage::Text("t".into())));
    for line in
        [&b"@nix"[..], b"@nix {", b"@nix []", b"@nix {\"action\":1}", b" @nix {\"action\":\"stop\"}", b"@nix \xff"]
    {
        assert_eq!(parse(line), None);
    }
    assert_eq!(parse(&[b"@nix ".to_vec(), vec![b'['; 60_000]].concat()), None);
    let long = format!("@nix {{\"action\":\"setPhase\",\"phase\":\"{}\\u001b[2J\"}}", "p".repeat(1000));
    assert_eq!(parse(long.as_bytes()), Some(BuilderMessage::Phase("p".repeat(64))));
}

#[test]
fn the_picture_shows_what_runs_below_what_waits_for_it() {
    let now = Instant::now();
    let mut tree = tree::Tree::new(now, false);
    for one in [build(1, "top", &[2, 3]), build(2, "left", &[4]), build(3, "right", &[4]), build(4, "base", &[])] {
        tree.know(&one);
    }
    tree.know(&build(5, "idle", &[]));
    tree.start(&build(4, "base", &[]), now);
    tree.phase(BuildId(4), "buildPhase");
    tree.line(BuildId(4), "cc -c x.c".into());
    let later = now + Duration::from_secs(125);
    assert_eq!(
        tree.draw(24, later),
        [
            "⏸ top",
            "  ⏸ left",
            "    ⏵ base 2m05s buildPhase cc -c x.c",
            "  ⏸ right",
            "[1 running, 4 waiting, 0 done] 2m05s"
        ]
    );
    // Too low for the tree: what runs alone.
    assert_eq!(tree.draw(3, later).len(), 2);
    assert_eq!(tree.draw(1, later).len(), 1);
    tree.finish(BuildId(4), &Ending::Done);
    tree.start(&build(2, "left", &[4]), later);
    tree.finish(BuildId(2), &failure());
    assert_eq!(tree.draw(24, later), ["[0 running, 3 waiting, 1 done, 1 failed] 2m05s"]);
}

#[test]
fn the_picture_is_bounded_however_much_runs_and_however_deep() {
    let now = Instant::now();
    let mut tree = tree::Tree::new(now, false);
    for id in 0..20_000 {
        tree.know(&build(id, "chain", &[id + 1]));
    }
    for id in 30_000..30_050 {
        tree.start(&build(id, "wide", &[]), now);
    }
    tree.start(&build(20_000, "last", &[]), now);
    let lines = tree.draw(10, now);
    assert_eq!(lines.len(), 10);
    assert_eq!(lines[8], "… and 43 more");
}

/// A terminal of a few lines that knows what is on it.
#[derive(Debug, Clone, Default)]
struct Screen(Arc<Mutex<ScreenInner>>);

#[derive(Debug, Default)]
struct ScreenInner {
    rows: Vec<String>,
    row: usize,
}

impl ScreenInner {
    fn at(&mut self) -> &mut String {
        while self.rows.len() <= self.row {
            self.rows.push(String::new());
        }
        &mut self.rows[self.row]
    }
}

impl TermLike for Screen {
    fn width(&self) -> u16 {
        40
    }
    fn height(&self) -> u16 {
        12
    }
    fn move_cursor_up(&self, rows: usize) -> io::Result<()> {
        let mut screen = self.0.lock().unwrap();
        screen.row = screen.row.saturating_sub(rows);
        Ok(())
    }
    fn move_cursor_down(&self, rows: usize) -> io::Result<()> {
        self.0.lock().unwrap().row += rows;
        Ok(())
    }
    fn move_cursor_right(&self, _: usize) -> io::Result<()> {
        Ok(())
    }
    fn move_cursor_left(&self, _: usize) -> io::Result<()> {
        Ok(())
    }
    fn write_line(&self, line: &str) -> io::Result<()> {
        self.write_str(line)?;
        self.0.lock().unwrap().row += 1;
        Ok(())
    }
    fn write_str(&self, text: &str) -> io::Result<()> {
        let mut screen = self.0.lock().unwrap();
        for character in text.chars() {
            // A full line goes on in the next one when something more is written.
            if character == '\n' || screen.at().chars().count() == 40 {
                screen.row += 1;
            }
            if character != '\n' {
                screen.at().push(character);
            }
        }
        Ok(())
    }
    fn clear_line(&self) -> io::Result<()> {
        self.0.lock().unwrap().at().clear();
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn the_bar_leaves_a_line_for_each_build_and_nothing_else() {
    let screen = Screen::default();
    let target = ProgressDrawTarget::term_like(Box::new(screen.clone()));
    let reporter = Serialised::new(bar::Bar::with_height(target, Level::Info, false, Box::new(|| 12)));
    tell(&reporter);
    drop(reporter);
    let screen = screen.0.lock().unwrap();
    let text = screen.rows.join("\n");
    let shown: Vec<_> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    assert_eq!(shown[0], "warning: between", "{text}");
    assert_eq!(shown[1], "✔ a 1s", "{text}");
    assert_eq!(shown[2], "✗ c 1m03s permanent", "{text}");
    assert!(text.contains("> failing") && text.contains("✗ b: a build that it needs failed"), "{text}");
    assert!(!text.contains("running,"), "the picture is still there: {text}");
    assert!(!text.contains('\x1b'), "{text:?}");
}

#[test]
fn names_of_formats_are_those_of_nix() {
    for format in LogFormat::ALL {
        assert_eq!(format.to_string().parse(), Ok(format));
    }
    assert!("json".parse::<LogFormat>().unwrap_err().contains("internal-json"));
}
