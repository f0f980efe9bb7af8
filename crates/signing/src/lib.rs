//! Signs and verifies container images.

pub mod format;
pub mod key;
pub mod ports;
