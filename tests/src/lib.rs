//! What the end-to-end suites share: starting the command, and looking at the host from outside.
