//! Signs and verifies container images.

pub mod ports;
