//! The bytes that other programs read: statements, envelopes, bundles, legacy payloads, manifests.

pub mod bundle;
pub mod dsse;
pub mod legacy;
pub mod referrer;
pub mod statement;
mod strict;

pub use strict::{check as check_json, check_message};

use std::collections::BTreeMap;

/// Annotations of a signature, sorted so that the same ones always give the same bytes.
pub type Annotations = BTreeMap<String, String>;
