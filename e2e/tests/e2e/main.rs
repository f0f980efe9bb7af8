//! What users rely on, with everything real: see the library of this package.

#![expect(clippy::unwrap_used, reason = "a helper of a test may end the test")]

mod access;
mod alerts;
mod audit;
mod backup;
mod connections;
mod cosign;
mod damage;
mod dead_man;
mod debt;
mod deploy;
mod door;
mod export;
mod faults;
mod full_disk;
mod images;
mod interop;
mod kill_log;
mod kill_signing;
mod ledger;
mod oidc;
mod operations;
mod outlook;
mod output;
mod outside;
mod postgresql;
mod readme;
mod repair;
mod servers;
mod traces;
mod usage;
mod wire;
mod wrong_log;
