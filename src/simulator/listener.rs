//! A listening port that can be taken away and given back: the outage of a whole service.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use super::connection::{self, Door, Wire};

/// Connections that wait to be accepted at most.
const BACKLOG: u32 = 1024;

/// How a listener is out of order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outage {
    /// Not at all.
    None,
    /// The port is closed: connections are refused.
    Refused,
    /// Connections are accepted and reset.
    Reset,
    /// Connections are accepted and never answered.
    Silent,
    /// Another accepts them, and shows a certificate that nobody trusts.
    Impostor,
}

struct Order {
    outage: Outage,
    done: oneshot::Sender<()>,
}

/// A listener's task.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) address: SocketAddr,
    orders: mpsc::Sender<Order>,
    task: JoinHandle<()>,
    /// Bound and never listening: while nobody listens, the system gives the port to nobody else.
    _held: TcpSocket,
}

impl Port {
    /// Listens at `address` and serves until shut down.
    pub(super) fn open(
        address: SocketAddr,
        door: Door,
        tls: Option<Arc<rustls::ServerConfig>>,
    ) -> io::Result<Self> {
        let socket = bind(address)?;
        let address = socket.local_addr()?;
        // Two may be bound to it as long as neither listens, and one while the other does.
        let held = bind(address)?;
        let listener = socket.listen(BACKLOG)?;
        let (orders, inbox) = mpsc::channel(4);
        let tls = tls.map(TlsAcceptor::from);
        let task = tokio::spawn(run(listener, address, door, tls, inbox));
        Ok(Self {
            address,
            orders,
            task,
            _held: held,
        })
    }

    /// Ends every connection, unless `outage` is none, and puts it in force before it returns.
    pub(super) async fn outage(&self, outage: Outage) {
        let (done, wait) = oneshot::channel();
        if self.orders.send(Order { outage, done }).await.is_ok() {
            // An error means that the task was shut down meanwhile.
            let _ = wait.await;
        }
    }

    /// Ends every connection and closes the port, for good.
    pub(super) async fn close(&self) {
        // Refused first: it answers only when the connections have ended.
        self.outage(Outage::Refused).await;
        self.task.abort();
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    // To come back at the same port while old connections linger, and while it is held.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

async fn run(
    listener: TcpListener,
    address: SocketAddr,
    door: Door,
    tls: Option<TlsAcceptor>,
    mut inbox: mpsc::Receiver<Order>,
) {
    let mut listener = Some(listener);
    let mut outage = Outage::None;
    let mut impostor = None;
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            order = inbox.recv() => {
                let Some(order) = order else { return };
                outage = order.outage;
                if outage == Outage::Impostor {
                    impostor = Some(TlsAcceptor::from(self_signed()));
                }
                if outage != Outage::None {
                    connections.shutdown().await;
                }
                if outage == Outage::Refused {
                    listener = None;
                } else if listener.is_none() {
                    listener = Some(rebind(address).await);
                }
                // Nobody waits where the caller was cancelled.
                let _ = order.done.send(());
            }
            accepted = accept(listener.as_ref()) => match accepted {
                Ok(tcp) => {
                    let id = door.journal.connected(door.listener);
                    match outage {
                        Outage::None => {
                            connections.spawn(begin(door.clone(), tcp, tls.clone(), id));
                        }
                        Outage::Silent => {
                            connections.spawn(async move {
                                let _held = tcp;
                                std::future::pending().await
                            });
                        }
                        Outage::Impostor => {
                            connections.spawn(begin(door.clone(), tcp, impostor.clone(), id));
                        }
                        Outage::Reset | Outage::Refused => Wire::Plain(tcp).reset(),
                    }
                }
                // Out of descriptors, most likely: others may close some.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn accept(listener: Option<&TcpListener>) -> io::Result<TcpStream> {
    match listener {
        Some(listener) => listener.accept().await.map(|(tcp, _)| tcp),
        None => std::future::pending().await,
    }
}

/// For the name of nobody here, by an issuer that nobody knows.
fn self_signed() -> Arc<ServerConfig> {
    let made = rcgen::generate_simple_self_signed(["portal.example".to_owned()]);
    let made = made.expect("a certificate for a name");
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    super::tls_config_of(vec![made.cert.der().clone()], key.into())
        .expect("a certificate and its own key")
}

/// Whoever asks for this very port may have had it in between; it is waited for.
async fn rebind(address: SocketAddr) -> TcpListener {
    loop {
        match bind(address).and_then(|socket| socket.listen(BACKLOG)) {
            Ok(listener) => return listener,
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn begin(door: Door, tcp: TcpStream, tls: Option<TlsAcceptor>, id: u64) {
    // Refused only by a socket that is gone, as the next read will tell.
    let _ = tcp.set_nodelay(true);
    let wire = match tls {
        None => Wire::Plain(tcp),
        Some(tls) => match tls.accept(tcp).await {
            Ok(stream) => Wire::Tls(Box::new(stream)),
            Err(_) => return,
        },
    };
    connection::serve(door, wire, id).await;
}
