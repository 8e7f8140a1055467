//! Trees that a builder wrote, walked as an enemy's work: by held directories, never through a link.
