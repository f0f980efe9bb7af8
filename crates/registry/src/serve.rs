//! A listener on loopback whose connections can be cut.

use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::{Registry, RegistryError};

/// A registry that is being served; it stops when this is dropped.
#[derive(Debug)]
pub struct Running {
    /// Where it listens: `127.0.0.1:<port>`.
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Running {
    /// Host and port as a reference names them.
    #[must_use]
    pub fn host(&self) -> String {
        self.address.to_string()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub async fn on_loopback(registry: &Registry) -> Result<Running, RegistryError> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .map_err(RegistryError::Listen)?;
    let address = listener.local_addr().map_err(RegistryError::Listen)?;
    let service = registry.router().into_make_service_with_connect_info::<Cut>();
    let task = tokio::spawn(async move {
        // Serving ends only when the task is aborted; an accept that fails is tried again inside.
        let _ = axum::serve(Cuttable(listener), service).await;
    });
    Ok(Running { address, task })
}

/// The scissors of one connection.
#[derive(Debug, Clone, Default)]
pub struct Cut(Arc<AtomicBool>);

impl Cut {
    /// From now on nothing more is written: the peer sees the connection end.
    pub fn now(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    fn done(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

struct Cuttable(TcpListener);

struct Connection {
    stream: TcpStream,
    cut: Cut,
}

impl Listener for Cuttable {
    type Io = Connection;
    type Addr = SocketAddr;

    fn accept(&mut self) -> impl Future<Output = (Connection, SocketAddr)> + Send {
        let accept = Listener::accept(&mut self.0);
        async move {
            let (stream, address) = accept.await;
            // Answers are small and waited for: do not hold them back for more. If it fails they are slower.
            let _ = stream.set_nodelay(true);
            (
                Connection {
                    stream,
                    cut: Cut::default(),
                },
                address,
            )
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

impl Connected<IncomingStream<'_, Cuttable>> for Cut {
    fn connect_info(stream: IncomingStream<'_, Cuttable>) -> Self {
        stream.io().cut.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.cut.done() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
