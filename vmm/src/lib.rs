//! Virtual machines inside a sealed room: the Windows guest, its Linux controller, their wire and their stages.
#![forbid(unsafe_code)]
