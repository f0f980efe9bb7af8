//! Where everything lies: the database with everybody's tables, and the blobs.

use std::path::Path;
use std::sync::Arc;

use kernel::{Clock, Random};
use probing::Marks;
use store::{Blobs, Db, Migration};
use tlog::Owner;

use crate::codes;
use crate::config::Config;
use crate::failure::Failure;

/// Everybody's tables.
pub fn migrations() -> Vec<Migration> {
    [
        store::MIGRATIONS,
        access::MIGRATIONS,
        signing::MIGRATIONS,
        tlog::MIGRATIONS,
        probing::MIGRATIONS,
    ]
    .concat()
}

/// The database's address: the configured one, or that of a file in the data folder.
pub fn database_url(config: &Config) -> String {
    let default = || format!("sqlite:{}", config.data.folder.join("portcullis.db").display());
    config.database.url.clone().unwrap_or_else(default)
}

/// That SQLite's file is there, which would be made otherwise. Of PostgreSQL nothing is asked.
pub fn database_is_there(config: &Config) -> Result<(), Failure> {
    let url = database_url(config);
    let Some(path) = url.strip_prefix("sqlite:") else {
        return Ok(());
    };
    let path = Path::new(path.strip_prefix("//").unwrap_or(path));
    if path.is_file() {
        return Ok(());
    }
    let what = format!("{} is not there", path.display());
    Err(Failure::coded(4, &codes::NO_DATA, what))
}

/// By what the blobs are known to be those of a database: its installation's id, which the probe of the blobs writes into
/// a store that never had one.
pub async fn owner(db: &Db, clock: &dyn Clock, random: &dyn Random) -> Result<Owner, Failure> {
    Ok(Owner {
        blob: probing::INSTALLATION_BLOB,
        id: Marks::new(db.clone()).installation(clock, random).await?,
    })
}

/// The tiles of the logs.
pub fn blobs(config: &Config) -> Result<Blobs, Failure> {
    let Some(url) = &config.blobs.url else {
        return Ok(Blobs::folder(&config.data.folder.join("blobs"))?);
    };
    let Some(rest) = url.strip_prefix("s3://") else {
        let folder = url.strip_prefix("file://").unwrap_or(url);
        return Ok(Blobs::folder(Path::new(folder))?);
    };
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let bucket = object_store::aws::AmazonS3Builder::from_env()
        .with_bucket_name(bucket)
        .build();
    let bucket = bucket.map_err(|error| Failure::local(format!("opening {url}"), &error))?;
    Ok(match prefix.trim_matches('/') {
        "" => Blobs::over(Arc::new(bucket)),
        prefix => Blobs::over(Arc::new(object_store::prefix::PrefixStore::new(bucket, prefix))),
    })
}
