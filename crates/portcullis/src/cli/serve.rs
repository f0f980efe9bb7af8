//! `portcullis serve`.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use kernel::SystemClock;
use tokio::net::TcpListener;
use web::listen::{Limits, Patience, connections_max};

use crate::args::Serve;
use crate::codes;
use crate::config::{Config, Loaded};
use crate::failure::Failure;
use crate::lifecycle::{self, CLOSE_SECONDS_MAX, Lifecycle};
use crate::output::try_println;
use crate::routes;
use crate::telemetry;
use crate::traces::Traces;
use crate::wiring::{self, App};

/// A server that listens and has yet to run.
pub struct Server {
    pub app: App,
    pub address: SocketAddr,
    pub first_token: Option<String>,
    listener: TcpListener,
}

/// Opens the store and the listener.
pub async fn listen(config: &Config) -> Result<Server, Failure> {
    let wanted = config.listen()?;
    // The port first: whoever finds it taken has not touched the data.
    let listener = TcpListener::bind(wanted)
        .await
        .map_err(|error| Failure::coded(1, &codes::LISTEN, format!("listening on {wanted}: {error}")))?;
    let address = listener
        .local_addr()
        .map_err(|error| Failure::local("finding the own address", &error))?;
    let started = wiring::start(config, address).await?;
    Ok(Server {
        app: started.app,
        address,
        first_token: started.first_token,
        listener,
    })
}

impl Server {
    /// Serves until the lifecycle ends it; an end that nobody asked for is a failure.
    pub async fn run(self, lifecycle: Lifecycle) -> Result<(), Failure> {
        let router = routes::router(&self.app, lifecycle.leaving.clone());
        let limits = Limits {
            connections: connections_max(),
            patience: Patience::default(),
            vital: routes::VITAL,
        };
        let clock = Arc::new(SystemClock::new());
        let soft = lifecycle.soft.clone();
        let serving = web::listen::serve(self.listener, router, limits, clock, soft);
        let served = tokio::select! {
            served = serving => served,
            () = lifecycle.hard.cancelled() => {
                tracing::warn!("requests were cut off");
                Ok(())
            }
        };
        lifecycle::close(self.app.close(), Duration::from_secs(CLOSE_SECONDS_MAX)).await;
        Ok(served?)
    }
}

pub async fn run(own: &Serve) -> Result<ExitCode, Failure> {
    let config = Loaded::for_serve(own)?.config;
    let traces = Traces::start(&config.tracing)?;
    telemetry::start(traces.as_ref());
    let server = listen(&config).await?;
    let url = format!("http://{}", server.address);
    if let Some(token) = &server.first_token {
        welcome(&url, token);
    }
    tracing::info!(url, data = %config.data.folder.display(), "serving");
    let lifecycle = Lifecycle::new();
    let lame_duck = Duration::from_secs(config.server.lame_duck_seconds);
    lifecycle
        .on_signals(lame_duck)
        .map_err(|error| Failure::local("waiting for signals", &error))?;
    let served = server.run(lifecycle).await;
    if let Some(traces) = traces {
        traces.close().await;
    }
    served?;
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}

/// The first start prints the token, once, and what to try.
fn welcome(url: &str, token: &str) {
    let text = format!(
        "Portcullis listens on {url}.

This is the administrator's token. It is shown this once and ends in 90 days:

  export PORTCULLIS_SERVER={url}
  export PORTCULLIS_TOKEN={token}

Try next, in another terminal:

  portcullis sign REGISTRY/REPOSITORY:TAG       sign an image of yours
  portcullis verify REGISTRY/REPOSITORY:TAG     verify it
  portcullis key get default                    the public key, for cosign verify --key
"
    );
    if !try_println(&text) {
        tracing::warn!(
            "the first token could not be printed; stop the server and make another: \
             portcullis token create NAME --role admin --everywhere --local"
        );
    }
}
