//! Writing.

use std::collections::BTreeSet;

use crate::derivation::{Derivation, Method, Output};
use crate::hash::Algorithm;
use crate::store_path::StoreDir;

/// The bytes of `derivation`'s `.drv` file.
pub fn write(derivation: &Derivation, store_dir: &StoreDir) -> Vec<u8> {
    let inputs = derivation.input_derivations.iter().map(|(path, outputs)| (store_dir.display(path), outputs));
    write_with(derivation, store_dir, false, inputs)
}

/// As [`write()`], with other names for the input derivations, and without the output paths if `masked`: what hashes
/// modulo are computed of.
pub(in crate::derivation) fn write_with<'a>(
    derivation: &Derivation,
    store_dir: &StoreDir,
    masked: bool,
    input_derivations: impl IntoIterator<Item = (String, &'a BTreeSet<String>)>,
) -> Vec<u8> {
    let mut writer = Writer(b"Derive(".to_vec());
    writer.list(&derivation.outputs, |writer, (name, output)| {
        let path = match output.path() {
            Some(path) if !masked => store_dir.display(path),
            _ => String::new(),
        };
        let (method, hash) = match output {
            Output::InputAddressed(_) | Output::Deferred => (String::new(), String::new()),
            Output::Fixed { method, hash, .. } => (written_method(*method, hash.algorithm()), hash.base16()),
            Output::Floating { method, algorithm } => (written_method(*method, *algorithm), String::new()),
            Output::Impure { method, algorithm } => (written_method(*method, *algorithm), "impure".to_owned()),
        };
        writer.tuple([name.as_bytes(), path.as_bytes(), method.as_bytes(), hash.as_bytes()]);
    });
    writer.byte(b',');
    writer.list(input_derivations, |writer, (name, outputs)| {
        writer.byte(b'(');
        writer.string(name.as_bytes());
        writer.byte(b',');
        writer.list(outputs, |writer, output| writer.string(output.as_bytes()));
        writer.byte(b')');
    });
    writer.byte(b',');
    writer.list(&derivation.input_sources, |writer, path| writer.string(store_dir.display(path).as_bytes()));
    writer.byte(b',');
    writer.string(derivation.system.as_bytes());
    writer.byte(b',');
    writer.string(&derivation.builder);
    writer.byte(b',');
    writer.list(&derivation.arguments, |writer, argument| writer.string(argument));
    writer.byte(b',');
    writer.list(&derivation.environment, |writer, (name, value)| {
        let is_output = std::str::from_utf8(name).is_ok_and(|name| derivation.outputs.contains_key(name));
        writer.tuple([name, if masked && is_output { b"".as_slice() } else { value }]);
    });
    writer.byte(b')');
    writer.0
}

/// The method and the algorithm as a `.drv` file has them in one field.
pub(in crate::derivation) fn written_method(method: Method, algorithm: Algorithm) -> String {
    format!("{}{algorithm}", method.prefix())
}

struct Writer(Vec<u8>);

impl Writer {
    fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }

    fn list<T>(&mut self, all: impl IntoIterator<Item = T>, mut element: impl FnMut(&mut Self, T)) {
        self.byte(b'[');
        for (position, this) in all.into_iter().enumerate() {
            if position > 0 {
                self.byte(b',');
            }
            element(self, this);
        }
        self.byte(b']');
    }

    fn tuple<const N: usize>(&mut self, strings: [&[u8]; N]) {
        self.byte(b'(');
        for (position, string) in strings.into_iter().enumerate() {
            if position > 0 {
                self.byte(b',');
            }
            self.string(string);
        }
        self.byte(b')');
    }

    fn string(&mut self, bytes: &[u8]) {
        self.byte(b'"');
        for byte in bytes {
            match byte {
                b'"' | b'\\' => self.0.extend([b'\\', *byte]),
                b'\n' => self.0.extend(b"\\n"),
                b'\r' => self.0.extend(b"\\r"),
                b'\t' => self.0.extend(b"\\t"),
                _ => self.byte(*byte),
            }
        }
        self.byte(b'"');
    }
}
