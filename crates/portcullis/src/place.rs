//! Where everything lies: the database with everybody's tables, and the blobs; and what a server is called there.

use std::path::Path;
use std::sync::Arc;

use kernel::{Clock, Random};
use probing::Marks;
use store::{Blobs, Db, Migration};
use tlog::Owner;

use crate::codes;
use crate::config::{BlobPlace, Config};
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
/// a store that never had one. From here on each new connection to the database is held against it too.
pub async fn owner(db: &Db, clock: &dyn Clock, random: &dyn Random) -> Result<Owner, Failure> {
    let marks = Marks::new(db.clone());
    let id = marks.installation(clock, random).await?;
    marks.require(&id);
    Ok(Owner {
        blob: probing::INSTALLATION_BLOB,
        id,
    })
}

/// A name for this server on its leases. SQLite's is the same after a restart, which goes on at once: the data folder
/// is locked, so that nobody else has it. On a shared database two clones of a machine would have one host and one folder,
/// and take each duty from each other in turns; there it is another in each process, and the next one waits for the
/// lease's end.
pub fn holder(folder: &Path, db: &Db, random: &dyn Random) -> Result<String, Failure> {
    let name = server_name(folder)?;
    if !db.is_shared() {
        return Ok(name);
    }
    let mut process = [0; 8];
    random.fill(&mut process);
    Ok(format!("{name} (process {:016x})", u64::from_be_bytes(process)))
}

/// A name for this server that people know it by, the same after a restart: its host and data folder.
pub fn server_name(folder: &Path) -> Result<String, Failure> {
    let folder =
        std::fs::canonicalize(folder).map_err(|error| Failure::local("finding the data folder", &error))?;
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    Ok(format!("{}:{}", host.trim(), folder.display()))
}

/// The tiles of the logs.
pub fn blobs(config: &Config) -> Result<Blobs, Failure> {
    let (name, prefix) = match config.blobs.place()? {
        None => return Ok(Blobs::folder(&config.data.folder.join("blobs"))?),
        Some(BlobPlace::Folder(folder)) => return Ok(Blobs::folder(folder)?),
        Some(BlobPlace::Bucket { name, prefix }) => (name, prefix),
    };
    let bucket = object_store::aws::AmazonS3Builder::from_env()
        .with_bucket_name(name)
        .build();
    let bucket = bucket.map_err(|error| Failure::local(format!("opening the bucket {name}"), &error))?;
    Ok(match prefix {
        "" => Blobs::over(Arc::new(bucket)),
        prefix => Blobs::over(Arc::new(object_store::prefix::PrefixStore::new(bucket, prefix))),
    })
}
