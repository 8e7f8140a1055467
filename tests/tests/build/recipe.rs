//! A derivation to be, as the JSON that `anchorhold derivation add` reads.

use serde_json::{Value, json};

use crate::world::World;

/// A derivation to be: a script of busybox's shell with its applets at hand.
#[must_use]
#[derive(Clone, Debug)]
pub struct Recipe(Value);

impl Recipe {
    /// One with the output `out`.
    pub fn new(world: &World, name: &str, script: &str) -> Self {
        let tools = &world.tools;
        Self(json!({
            "name": name, "system": format!("{}-linux", std::env::consts::ARCH), "outputs": { "out": {} },
            "inputSrcs": [tools], "inputDrvs": {}, "builder": format!("{tools}/bin/sh"), "args": ["-c", script],
            "env": { "PATH": format!("{tools}/bin"), "out": "" },
        }))
    }

    pub fn json(&self) -> &Value {
        &self.0
    }

    pub fn output_names(&self) -> Vec<String> {
        self.0["outputs"].as_object().unwrap().keys().cloned().collect()
    }

    /// The same with another value for a key of the JSON form.
    pub fn set(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.0[key] = value.into();
        self
    }

    /// The same with these outputs.
    pub fn outputs(mut self, names: &[&str]) -> Self {
        self.0["outputs"] = json!({});
        for name in names {
            self.0["outputs"][name] = json!({});
            self.0["env"][name] = "".into();
        }
        self
    }

    /// The same, run by another program with these arguments.
    pub fn run_by(self, builder: &str, arguments: &[&str]) -> Self {
        self.set("builder", builder).set("args", arguments)
    }

    /// The same with a variable.
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.0["env"][name] = value.into().into();
        self
    }

    /// The same with a path that it needs; the variable `name` says which.
    pub fn source(mut self, name: &str, path: &str) -> Self {
        self.0["inputSrcs"].as_array_mut().unwrap().push(path.into());
        self.env(name, path)
    }

    /// The same with an output of another derivation that it needs; the variable `name` says where that is.
    pub fn needs(mut self, world: &World, name: &str, derivation: &str, output: &str) -> Self {
        let path = world.output(derivation, output);
        let outputs = &mut self.0["inputDrvs"][derivation];
        match outputs.as_array_mut() {
            Some(outputs) => outputs.push(output.into()),
            None => *outputs = json!([output]),
        }
        self.env(name, path)
    }

    /// The same with a hash for its output.
    pub fn fixed(self, method: &str, algorithm: &str, hash: &str) -> Self {
        self.set("outputs", json!({ "out": { "method": method, "hashAlgo": algorithm, "hash": hash } }))
    }

    /// The same with structured attributes, which take the place of the variables.
    pub fn structured(self, attributes: Value) -> Self {
        self.set("env", json!({})).set("structuredAttrs", attributes)
    }
}
