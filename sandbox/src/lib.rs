//! One sealed room of namespaces: described, planned, entered, proved.

pub mod layers;
pub mod sys;
