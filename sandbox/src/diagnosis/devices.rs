//! `/dev/kvm`: there, openable, and of use.

use super::{Diagnosis, Facts, Group, Verdict};
use crate::layers::Layer;

/// Judges it.
pub fn judge(facts: &Facts) -> Vec<Diagnosis> {
    let row = |verdict, found: String| Diagnosis::new(Group::Option, "kvm", Layer::Devices, verdict, found);
    vec![match &facts.host.kvm {
        Ok(kvm) => {
            let group =
                kvm.group_needed.map_or("anybody may open it".to_owned(), |gid| format!("opened through gid {gid}"));
            row(Verdict::Works, format!("--kvm: /dev/kvm answers and the processor has virtualisation; {group}"))
        }
        Err((why, fix)) => row(Verdict::Missing, format!("--kvm: unusable: {why}")).fix(fix),
    }]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_answers_and_is_of_no_use_is_unusable() {
        let mut facts = Facts::healthy();
        facts.host.kvm = Err(("neither vmx nor svm: a guest would hang".into(), "pass it through".into()));
        let row = judge(&facts).remove(0);
        assert_eq!(row.verdict, Verdict::Missing);
        assert!(row.found.contains("unusable") && row.found.contains("would hang"), "{}", row.found);
    }
}
