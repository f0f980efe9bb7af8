//! A name that leads to one server today and to another one tomorrow.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Passes connections on to a socket, until it is told of another one. It listens until the test's process ends.
#[derive(Debug)]
pub struct Switch {
    address: SocketAddr,
    led: Arc<Mutex<Led>>,
}

#[derive(Debug)]
struct Led {
    to: PathBuf,
    open: Vec<TcpStream>,
}

impl Switch {
    /// Leads to the socket `to` first.
    ///
    /// # Errors
    /// If nothing can be listened on.
    pub fn start(to: &Path) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let led = Arc::new(Mutex::new(Led {
            to: to.to_owned(),
            open: Vec::new(),
        }));
        let leads = led.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // A server that is not there closes the connection.
                let _ = pass_on(client, &leads);
            }
        });
        Ok(Self { address, led })
    }

    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Leads elsewhere from now on, and cuts what is open.
    pub fn lead_to(&self, to: &Path) {
        let mut led = lock(&self.led);
        to.clone_into(&mut led.to);
        for client in led.open.drain(..) {
            let _ = client.shutdown(Shutdown::Both);
        }
    }
}

fn lock(led: &Mutex<Led>) -> MutexGuard<'_, Led> {
    led.lock().unwrap_or_else(PoisonError::into_inner)
}

fn pass_on(client: TcpStream, led: &Mutex<Led>) -> io::Result<()> {
    let mut led = lock(led);
    let server = UnixStream::connect(&led.to)?;
    led.open.push(client.try_clone()?);
    let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    let (mut from_server, mut to_client) = (server, client);
    std::thread::spawn(move || {
        let _ = io::copy(&mut from_client, &mut to_server);
        let _ = to_server.shutdown(Shutdown::Both);
    });
    std::thread::spawn(move || {
        let _ = io::copy(&mut from_server, &mut to_client);
        let _ = to_client.shutdown(Shutdown::Both);
    });
    Ok(())
}
