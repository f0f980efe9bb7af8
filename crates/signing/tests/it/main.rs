//! The whole of signing against a registry in the process, the real log and a database: what it does, and what it
//! does when everything around it lies, breaks or is forged.

#![expect(clippy::unwrap_used, reason = "a helper of a test may end the test")]

mod better;
mod ca;
mod evidence;
mod faults;
mod forge;
mod fuzz;
mod image_policy;
mod input;
mod keyless;
mod keys;
mod matrix;
mod moving;
mod once;
mod owed;
mod policy;
mod projects;
mod releases;
mod stored_keys;
mod strange;
mod strict;
mod timestamps;
mod world;
