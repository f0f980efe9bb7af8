//! A registry in this process, and images in it.

use registry::{Options, Registry, Running};

pub struct Images {
    pub registry: Registry,
    pub running: Running,
}

impl Images {
    pub async fn new() -> Self {
        let registry = Registry::memory(Options::default());
        let running = registry.serve_on_loopback().await.unwrap();
        Self { registry, running }
    }

    /// Puts an image; its reference by digest.
    pub async fn put(&self, repository: &str, content: &str) -> String {
        let digest = self.registry.put_image(repository, "v1", content).await.unwrap();
        format!("{}/{repository}@{digest}", self.running.host())
    }
}
