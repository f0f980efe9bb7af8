//! Small real images for the story.

use registry::Registry;

use crate::failure::Failure;

/// The demo's registry, and what is in it.
pub struct Images {
    pub host: String,
    registry: Registry,
}

impl Images {
    pub fn new(registry: Registry, host: String) -> Self {
        Self { host, registry }
    }

    /// Puts an image and gives its reference.
    pub async fn push(&self, repository: &str, tag: &str, content: &str) -> Result<String, Failure> {
        let put = self.registry.put_image(repository, tag, content).await;
        put.map_err(|error| Failure::local(format!("putting {repository}:{tag}"), &error))?;
        Ok(format!("{}/{repository}:{tag}", self.host))
    }

    /// Puts `count` images `<repository>-1` and so on.
    pub async fn many(&self, repository: &str, count: usize) -> Result<Vec<String>, Failure> {
        let mut references = Vec::with_capacity(count);
        for number in 1..=count {
            let repository = format!("{repository}-{number}");
            references.push(
                self.push(&repository, "1.0", &format!("{repository} in its first version"))
                    .await?,
            );
        }
        Ok(references)
    }

    /// Changes the first `count` of them to what they never were.
    pub async fn change(&self, repository: &str, count: usize, version: &str) -> Result<(), Failure> {
        for number in 1..=count {
            let repository = format!("{repository}-{number}");
            let content = format!("{repository} in its {version} version");
            self.push(&repository, "1.0", &content).await?;
        }
        Ok(())
    }
}
