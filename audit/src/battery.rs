//! What the probe program writes: a line of JSON for the head, one for each probe, one for the end.
//!
//! The lines come out of a sandbox, by way of logs and pipes that may put other lines between them. So what is no line of the
//! battery is left out, lengths are bounded, and a battery without its last line is called cut off.

use anchorhold_probe::vocabulary::{End, Head, Row};
use serde::{Deserialize, Serialize};

/// The longest line that is read, in bytes.
const LONGEST: usize = 128 * 1024;

/// A whole run of the battery, as it came out of a sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Battery {
    /// The first line, if it came.
    pub head: Option<Head>,
    /// The rows, in the order in which they came.
    pub rows: Vec<Row>,
    /// Whether the last line came, and counts as many rows as there are.
    pub complete: bool,
}

impl Battery {
    /// Reads it.
    pub fn parse(text: &[u8]) -> Self {
        let mut battery = Self::default();
        for line in text.split(|byte| *byte == b'\n') {
            // A log may put its own words before a line.
            let Some(start) = line.iter().position(|byte| *byte == b'{') else { continue };
            let line = &line[start..];
            if line.len() > LONGEST {
                continue;
            }
            if let Ok(row) = serde_json::from_slice::<Row>(line) {
                if !battery.rows.iter().any(|other| other.id == row.id) {
                    battery.rows.push(row);
                }
            } else if let Ok(head) = serde_json::from_slice::<Head>(line) {
                battery.head.get_or_insert(head);
            } else if let Ok(End { end, .. }) = serde_json::from_slice::<End>(line) {
                battery.complete = end == battery.rows.len();
            }
        }
        battery
    }

    /// What this probe found.
    pub fn row(&self, id: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.id == id)
    }
}

#[cfg(test)]
mod tests {
    use anchorhold_probe::verdict::Verdict;

    use super::*;

    const WHOLE: &str = concat!(
        r#"{"battery":"0.1.0","kernel":"6.1","machine":"x86_64","uid":1000,"gid":100,"probes":2}"#,
        "\n",
        r#"{"id":"a.b","verdict":"refused","errno":"EPERM","milliseconds":1}"#,
        "\n",
        r#"x> {"id":"a.c","verdict":"reached","detail":"open","milliseconds":1}"#,
        "\nsome log line { of a tool\n",
        r#"{"end":2,"verdicts":{"refused":1,"reached":1}}"#,
        "\n",
    );

    #[test]
    fn lines_are_found_between_others() {
        let battery = Battery::parse(WHOLE.as_bytes());
        assert!(battery.complete);
        assert_eq!(battery.head.as_ref().map(|head| head.uid), Some(1000));
        assert_eq!(battery.row("a.c").map(|row| row.finding.verdict), Some(Verdict::Reached));
        assert_eq!(battery.row("a.b").map(Row::answer), Some("EPERM".to_owned()));
    }

    #[test]
    fn a_battery_that_lost_its_end_or_a_row_is_not_complete() {
        let cut: String = WHOLE.lines().take(3).map(|line| format!("{line}\n")).collect();
        assert!(!Battery::parse(cut.as_bytes()).complete);
        let lost: String = WHOLE.lines().filter(|line| !line.contains("a.b")).map(|line| format!("{line}\n")).collect();
        assert!(!Battery::parse(lost.as_bytes()).complete);
    }
}
