//! Running one case on both databases.

use std::future::Future;
use std::sync::Arc;

use store::Db;
use tempfile::TempDir;
use testkit::Postgres;

/// An empty database, and what has to live as long as it is used.
pub struct Place {
    /// Opens it again with this.
    pub url: String,
    _folder: Option<TempDir>,
    _server: Option<Arc<Postgres>>,
}

impl Place {
    pub fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("test.db").display());
        Self {
            url,
            _folder: Some(folder),
            _server: None,
        }
    }

    /// `None`: there is no PostgreSQL on this machine, and that is written down.
    pub fn postgresql() -> Option<Self> {
        let server = Postgres::shared()?;
        Some(Self {
            url: server.database(),
            _folder: None,
            _server: Some(server),
        })
    }

    pub async fn open(&self) -> Db {
        Db::open(&self.url).await.unwrap()
    }
}

/// Runs `case` to its end on a runtime of its own.
pub fn run<F: Future<Output = ()>>(case: impl FnOnce(Place) -> F, place: Option<Place>) {
    let Some(place) = place else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(case(place));
}

/// Makes a test on SQLite and one on PostgreSQL of each case.
macro_rules! on_both {
    ($($case:ident),* $(,)?) => {
        mod sqlite {
            $(#[test] fn $case() { crate::on::run(super::$case, Some(crate::on::Place::sqlite())); })*
        }
        mod postgresql {
            $(#[test] fn $case() { crate::on::run(super::$case, crate::on::Place::postgresql()); })*
        }
    };
}
pub(crate) use on_both;
