//! One sealed room of namespaces: described, planned, entered, proved.
