//! What is deployed with is what the program takes: the chart, the manifests, the unit, the image.

mod chart;
mod program;

use std::path::{Path, PathBuf};

fn tree(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(tree(path)).unwrap()
}
