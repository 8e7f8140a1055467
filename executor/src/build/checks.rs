//! What a derivation forbids its outputs: references, requisites and sizes.
//!
//! Source: `src/libstore/build/derivation-check.cc` of Nix.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;

use crate::derivation::options::{Options, OutputChecks, Reference};
use crate::store_path::StorePath;

/// What counts of a path here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The paths that it refers to, itself included if it does.
    pub references: BTreeSet<StorePath>,
    /// The size of its NAR in bytes.
    pub nar_size: u64,
}

/// An output that was built, but not registered yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewOutput {
    /// Where it will be.
    pub path: StorePath,
    /// What is known of it.
    pub facts: Facts,
}

/// Why an output is refused.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The NAR is too large.
    #[error("the output ‘{output}’ (‘{path}’) has {size} bytes; the derivation allows {max} (maxSize)")]
    TooLarge {
        /// The output's name.
        output: String,
        /// Its path.
        path: StorePath,
        /// The size of its NAR in bytes.
        size: u64,
        /// The greatest that is allowed.
        max: u64,
    },
    /// The closure is too large.
    #[error(
        "the closure of the output ‘{output}’ (‘{path}’) has {size} bytes; the derivation allows {max} (maxClosureSize)"
    )]
    ClosureTooLarge {
        /// The output's name.
        output: String,
        /// Its path.
        path: StorePath,
        /// The sum of the sizes in bytes.
        size: u64,
        /// The greatest that is allowed.
        max: u64,
    },
    /// It refers to what it must not.
    #[error("the output ‘{output}’ is not allowed to {} (the derivation's {attribute}):{}",
        if *.requisites { "depend on these paths" } else { "refer to these paths" }, list(chains))]
    Forbidden {
        /// The output's name.
        output: String,
        /// Which list forbids it.
        attribute: &'static str,
        /// Whether the whole closure counts, not only direct references.
        requisites: bool,
        /// For each forbidden path how the output comes to it: the output first, the forbidden path last.
        chains: Vec<Vec<StorePath>>,
    },
    /// A list names an output that was not made.
    #[error("the output ‘{output}’ is compared with the output ‘{other}’, which was not made")]
    NoSuchOutput {
        /// The output's name.
        output: String,
        /// The other's.
        other: String,
    },
    /// A path in the closure is unknown.
    #[error("cannot check the output ‘{output}’: ‘{path}’ in its closure is not valid")]
    NotValid {
        /// The output's name.
        output: String,
        /// The path.
        path: StorePath,
    },
    /// The store does not answer.
    #[error("cannot check the output ‘{output}’: {source}")]
    Store {
        /// The output's name.
        output: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

fn list(chains: &[Vec<StorePath>]) -> String {
    let mut text = String::new();
    for chain in chains {
        let chain: Vec<_> = chain.iter().map(StorePath::as_str).collect();
        let _ = write!(text, "\n  {}", chain.join(" → "));
    }
    text
}

/// How a store is asked for a path. Nothing means that it is not valid.
pub type FactsOf<'a> = dyn Fn(&StorePath) -> Result<Option<Facts>, Box<dyn std::error::Error + Send + Sync>> + 'a;

/// Checks all `outputs` of one build, by name, against what its derivation allows; `facts_of` knows all paths below them.
pub fn check(
    options: &Options,
    outputs: &BTreeMap<String, NewOutput>,
    facts_of: &FactsOf<'_>,
) -> Result<(), CheckError> {
    let by_path: BTreeMap<_, _> = outputs.values().map(|output| (&output.path, &output.facts)).collect();
    for (name, output) in outputs {
        let checks = options.checks_of(name);
        let checker = Checker { name, output, outputs, by_path: &by_path, facts_of };
        checker.check(&checks)?;
    }
    Ok(())
}

struct Checker<'a> {
    name: &'a str,
    output: &'a NewOutput,
    outputs: &'a BTreeMap<String, NewOutput>,
    by_path: &'a BTreeMap<&'a StorePath, &'a Facts>,
    facts_of: &'a FactsOf<'a>,
}

/// Who is in a closure, and through whom the shortest way leads there.
struct Closure {
    parents: BTreeMap<StorePath, Option<StorePath>>,
    size: u64,
}

impl Closure {
    fn chain(&self, path: &StorePath) -> Vec<StorePath> {
        let mut chain = vec![path.clone()];
        while let Some(Some(parent)) = chain.last().and_then(|last| self.parents.get(last)) {
            chain.push(parent.clone());
        }
        chain.reverse();
        chain
    }
}

impl Checker<'_> {
    fn check(&self, checks: &OutputChecks) -> Result<(), CheckError> {
        let (output, path) = (self.name.to_owned(), self.output.path.clone());
        let size = self.output.facts.nar_size;
        if let Some(max) = checks.max_size
            && size > max
        {
            return Err(CheckError::TooLarge { output, path, size, max });
        }
        let asks_for_closure = checks.max_closure_size.is_some()
            || checks.allowed_requisites.is_some()
            || !checks.disallowed_requisites.is_empty();
        let closure = if asks_for_closure { Some(self.closure()?) } else { None };
        if let (Some(closure), Some(max)) = (&closure, checks.max_closure_size)
            && closure.size > max
        {
            return Err(CheckError::ClosureTooLarge { output, path, size: closure.size, max });
        }

        let references = &self.output.facts.references;
        let direct = |path: &StorePath| vec![self.output.path.clone(), path.clone()];
        if let Some(allowed) = &checks.allowed_references {
            self.refuse("allowedReferences", false, references, allowed, true, direct)?;
        }
        self.refuse("disallowedReferences", false, references, &checks.disallowed_references, false, direct)?;
        if let Some(closure) = closure {
            let requisites: BTreeSet<_> = closure
                .parents
                .keys()
                .filter(|path| !checks.ignore_self_references || **path != self.output.path)
                .cloned()
                .collect();
            let chain = |path: &StorePath| closure.chain(path);
            if let Some(allowed) = &checks.allowed_requisites {
                self.refuse("allowedRequisites", true, &requisites, allowed, true, chain)?;
            }
            self.refuse("disallowedRequisites", true, &requisites, &checks.disallowed_requisites, false, chain)?;
        }
        Ok(())
    }

    /// Refuses those of `used` that are not in `listed` if that is what is `allowed`, or that are if it is not.
    fn refuse(
        &self,
        attribute: &'static str,
        requisites: bool,
        used: &BTreeSet<StorePath>,
        listed: &BTreeSet<Reference>,
        allowed: bool,
        chain: impl Fn(&StorePath) -> Vec<StorePath>,
    ) -> Result<(), CheckError> {
        let mut paths = BTreeSet::new();
        for reference in listed {
            paths.insert(match reference {
                Reference::Path(path) => path,
                Reference::Output(other) => match self.outputs.get(other) {
                    Some(output) => &output.path,
                    None => {
                        let (output, other) = (self.name.to_owned(), other.clone());
                        return Err(CheckError::NoSuchOutput { output, other });
                    }
                },
            });
        }
        let chains: Vec<_> = used.iter().filter(|path| paths.contains(path) != allowed).map(chain).collect();
        if chains.is_empty() {
            return Ok(());
        }
        Err(CheckError::Forbidden { output: self.name.to_owned(), attribute, requisites, chains })
    }

    /// Breadth first, so that the ways are the shortest.
    fn closure(&self) -> Result<Closure, CheckError> {
        let mut closure = Closure { parents: BTreeMap::from([(self.output.path.clone(), None)]), size: 0 };
        let mut pending = VecDeque::from([self.output.path.clone()]);
        while let Some(path) = pending.pop_front() {
            let facts = match self.by_path.get(&path) {
                Some(facts) => (*facts).clone(),
                None => match (self.facts_of)(&path) {
                    Ok(Some(facts)) => facts,
                    Ok(None) => return Err(CheckError::NotValid { output: self.name.to_owned(), path }),
                    Err(source) => return Err(CheckError::Store { output: self.name.to_owned(), source }),
                },
            };
            closure.size = closure.size.saturating_add(facts.nar_size);
            for reference in facts.references {
                if !closure.parents.contains_key(&reference) {
                    closure.parents.insert(reference.clone(), Some(path.clone()));
                    pending.push_back(reference);
                }
            }
        }
        Ok(closure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::derivation::{Derivation, Output};
    use crate::store_path::StoreDir;
    use serde_json::{Value, json};

    fn path(name: &str) -> StorePath {
        format!("{}-{name}", "0".repeat(32)).parse().unwrap()
    }

    fn facts(references: &[&str], nar_size: u64) -> Facts {
        Facts { references: references.iter().map(|name| path(name)).collect(), nar_size }
    }

    /// `out` refers to itself, `dev` and `a`; below `a` are `b` and `secret`.
    fn check_with(output_checks: &Value) -> Result<(), String> {
        check_options(&json!({ "outputChecks": output_checks }).to_string(), "__json")
    }

    fn check_options(value: &str, variable: &str) -> Result<(), String> {
        let derivation = Derivation {
            name: "a".to_owned(),
            outputs: ["dev", "out"].map(|name| (name.to_owned(), Output::Deferred)).into(),
            input_derivations: BTreeMap::new(),
            input_sources: BTreeSet::new(),
            system: "x".to_owned(),
            builder: vec![],
            arguments: vec![],
            environment: BTreeMap::from([(variable.as_bytes().to_vec(), value.as_bytes().to_vec())]),
        };
        let options = Options::read(&derivation, &StoreDir::default()).unwrap();
        let outputs = [("out", facts(&["out", "dev", "a"], 100)), ("dev", facts(&[], 10))]
            .map(|(name, facts)| (name.to_owned(), NewOutput { path: path(name), facts }));
        let store: BTreeMap<_, _> =
            [("a", facts(&["b"], 1)), ("b", facts(&["secret", "a"], 2)), ("secret", facts(&[], 4))]
                .map(|(name, facts)| (path(name), facts))
                .into();
        check(&options, &outputs.into(), &|path| Ok(store.get(path).cloned())).map_err(|error| error.to_string())
    }

    fn full(name: &str) -> String {
        format!("/nix/store/{}", path(name))
    }

    #[test]
    fn what_is_allowed_passes() {
        for checks in [
            json!({}),
            json!({"out": {"maxSize": 100, "maxClosureSize": 117}}),
            json!({"out": {"allowedReferences": ["out", "dev", full("a")]}}),
            json!({"out": {"allowedRequisites": ["out", "dev", full("a"), full("b"), full("secret")]}}),
            json!({"out": {"ignoreSelfRefs": true, "allowedRequisites": ["dev", full("a"), full("b"), full("secret")]}}),
            json!({"out": {"disallowedReferences": [full("secret")]}}),
            json!({"dev": {"allowedReferences": [], "disallowedRequisites": ["out"]}}),
        ] {
            assert_eq!(check_with(&checks), Ok(()), "{checks}");
        }
        let all = ["dev", &full("a"), &full("b"), &full("secret")].join(" ");
        // Without structured attributes an output may refer to itself, but the list of direct references must say so.
        assert_eq!(check_options(&format!("{all} "), "allowedRequisites"), Ok(()));
        assert!(check_options(&format!("{all} "), "allowedReferences").unwrap_err().contains("-out → "));
    }

    #[test]
    fn what_is_forbidden_is_shown_with_the_way_to_it() {
        let way = ["out", "a", "b", "secret"].map(|name| path(name).to_string()).join(" → ");
        for (checks, part) in [
            (json!({"out": {"maxSize": 99}}), "has 100 bytes; the derivation allows 99 (maxSize)".to_owned()),
            (json!({"out": {"maxClosureSize": 116}}), "has 117 bytes; the derivation allows 116".to_owned()),
            (json!({"out": {"disallowedRequisites": [full("secret")]}}), format!("disallowedRequisites):\n  {way}")),
            (
                json!({"out": {"allowedRequisites": ["out", "dev", full("a"), full("b")]}}),
                format!("not allowed to depend on these paths (the derivation's allowedRequisites):\n  {way}"),
            ),
            (
                json!({"out": {"disallowedReferences": ["dev"]}}),
                format!(
                    "refer to these paths (the derivation's disallowedReferences):\n  {} → {}",
                    path("out"),
                    path("dev")
                ),
            ),
            (
                json!({"out": {"allowedReferences": ["out"]}}),
                format!("{0} → {1}\n  {0} → {2}", path("out"), path("a"), path("dev")),
            ),
            (json!({"out": {"allowedRequisites": ["dev"]}}), format!("\n  {}\n", path("out"))),
        ] {
            let error = check_with(&checks).unwrap_err();
            assert!(error.contains(&part), "{checks}: {error}");
        }
    }
}
