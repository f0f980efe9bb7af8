//! The embedded transparency log.
#![allow(dead_code)]
mod answer;
mod checkpoint;
mod der;
mod entry;
mod error;
mod merkle;
mod request;
mod tile;
