//! The admin socket: where the cache is tended while the proxy runs.
//!
//! Who may is decided by the file's permissions: it is its owner's alone from the moment it can be
//! connected to. A socket that a killed process left is replaced; one that somebody listens on is not.

use std::fs::{self, DirBuilder, File, Permissions};
use std::future::Future;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Either, Full};
use hyper::body::Incoming;
use rustix::fs::FlockOperation;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::accepting::{self, Bounds};
use super::cache_dir::CacheDir;
use super::transport::{ItemBody, OPERATIONS};
use super::{Admin, page_of};
use crate::jobs::operations::{Input, Operations, wire};

/// Operators are few; more is a loop in somebody's script.
const MAX_CONNECTIONS: usize = 32;
/// An import from a slow disk, or an export into a slow one, may take its day.
const LIFE: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// From a request's head to the end of its first line.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);
/// How long the next bytes of an input may take.
const INPUT_DEADLINE: Duration = Duration::from_secs(15 * 60);
/// How much of a request the log shows, in bytes: it may name thousands of images.
const MAX_LOGGED: usize = 1024;
/// How long somebody else may hold the folder: to look whether a socket is abandoned takes no time.
const FOLDER_DEADLINE: Duration = Duration::from_secs(2);
/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;

/// Why there is no admin socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody listens there.
    #[error("{} is in use by another process", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// What is there is not a socket, and may be somebody's file.
    #[error("{} is there and is not a socket", path.display())]
    NotASocket {
        /// What is in its place.
        path: PathBuf,
    },
    /// The system refuses.
    #[error("cannot make the admin socket {}", path.display())]
    Refused {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The socket, bound. Its file goes with it.
#[derive(Debug)]
pub struct AdminSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of our own file: another process may have put its own there.
    identity: (u64, u64),
}

impl AdminSocket {
    /// Makes the socket at `path`, and the folder it is in if that is missing.
    ///
    /// # Errors
    /// Something is in its place, or the system refuses.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let refused = |source| SocketError::Refused {
            path: path.to_owned(),
            source,
        };
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(refused)?;
        // Of two processes that find the same abandoned socket, one goes first.
        let folder = File::open(folder).map_err(refused)?;
        lock(&folder).map_err(refused)?;
        if is_in_use(path)? {
            return Err(SocketError::InUse {
                path: path.to_owned(),
            });
        }
        let (listener, identity) = listen(path).map_err(refused)?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            identity,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Answers until `shutdown` is done; then operations, which are on the cache in `cache_dir`, are ended
    /// at their next step. It shows the same pages as the admin listener.
    ///
    /// # Cancel safety
    /// Safe: dropping the future ends all operations and removes the socket.
    pub async fn run(
        self,
        admin: Admin,
        operations: Operations,
        cache_dir: &Path,
        shutdown: impl Future<Output = ()>,
    ) {
        let cache_dir = Arc::new(CacheDir::at(cache_dir));
        let bounds = Bounds {
            connections: MAX_CONNECTIONS,
            from_one: MAX_CONNECTIONS,
            life: LIFE,
        };
        accepting::serve(&self.listener, bounds, shutdown, move |request| {
            let (admin, operations) = (admin.clone(), operations.clone());
            let cache_dir = Arc::clone(&cache_dir);
            async move {
                if request.uri().path() != OPERATIONS {
                    return admin.answer(&request).await.map(Either::Left);
                }
                match start(operations, &cache_dir, request).await {
                    Ok(response) => response.map(Either::Right),
                    Err(response) => response.map(Either::Left),
                }
            }
        })
        .await;
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|found| found == self.identity) {
            // A file that stays is replaced by the next process.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Waits a moment for `folder`, and no longer: whoever may read it can hold it.
fn lock(folder: &File) -> io::Result<()> {
    let began = Instant::now();
    loop {
        match rustix::fs::flock(folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK) if began.elapsed() < FOLDER_DEADLINE => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(io::Error::other("another process keeps its folder locked"));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Whether somebody listens at `path`.
fn is_in_use(path: &Path) -> Result<bool, SocketError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(SocketError::NotASocket {
                path: path.to_owned(),
            });
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(source) => {
            return Err(SocketError::Refused {
                path: path.to_owned(),
                source,
            });
        }
    }
    match UnixStream::connect(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(false),
        // It went away in between.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        // One whose queue is full, or that only its owner may use, is somebody's.
        Err(_) => Ok(true),
    }
}

/// Makes it under another name, so that it has its permissions before it has its name.
fn listen(path: &Path) -> io::Result<(UnixListener, (u64, u64))> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(&new)?)?;
    let made = fs::set_permissions(&new, Permissions::from_mode(0o600))
        .and_then(|()| socket.listen(BACKLOG))
        .and_then(|()| socket.set_nonblocking(true))
        .and_then(|()| identity(&new))
        .and_then(|identity| fs::rename(&new, path).map(|()| identity));
    let identity = made.inspect_err(|_| {
        let _ = fs::remove_file(&new);
    })?;
    let listener = std::os::unix::net::UnixListener::from(std::os::fd::OwnedFd::from(socket));
    Ok((UnixListener::from_std(listener)?, identity))
}

/// Starts what a request asks for; `Err` says why not.
async fn start(
    operations: Operations,
    cache_dir: &CacheDir,
    request: Request<Incoming>,
) -> Result<Response<ItemBody>, Response<Full<Bytes>>> {
    if *request.method() != Method::POST {
        let why = "operations are asked for by POST\n";
        return Err(refusal(StatusCode::METHOD_NOT_ALLOWED, why));
    }
    if let Some(other) = cache_dir.other(request.headers()) {
        let (ours, other) = (cache_dir.path().display(), other.display());
        let why =
            format!("cache.dir is {other}, and the running proxy that was reached keeps {ours}\n");
        return Err(refusal(StatusCode::CONFLICT, why));
    }
    let mut body = request.into_body();
    let mut received = BytesMut::new();
    let asked = timeout(REQUEST_DEADLINE, async {
        loop {
            if let Some(asked) = wire::take_request(&mut received)? {
                return Ok(Some(asked));
            }
            match body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        received.extend_from_slice(&data);
                    }
                }
                // The line may lack its end, as that of a person who types it.
                None if !received.is_empty() && !received.ends_with(b"\n") => {
                    received.extend_from_slice(b"\n");
                }
                None | Some(Err(_)) => return Ok(None),
            }
        }
    });
    let asked = match asked.await {
        Ok(Ok(Some(asked))) => asked,
        Ok(Ok(None)) => return Err(refusal(StatusCode::BAD_REQUEST, "no request came\n")),
        Ok(Err(error)) => {
            let error: wire::WireError = error;
            return Err(refusal(StatusCode::BAD_REQUEST, format!("{error}\n")));
        }
        Err(_) => {
            return Err(refusal(
                StatusCode::REQUEST_TIMEOUT,
                "the request is late\n",
            ));
        }
    };
    let line = wire::request_line(&asked);
    let line = String::from_utf8_lossy(&line[..line.len().min(MAX_LOGGED)]);
    tracing::info!(operation = line.trim_end(), "tending the cache");
    let mut response = Response::new(ItemBody::new(
        operations.start(asked, input(received, body)),
    ));
    let lines = HeaderValue::from_static("application/x-ndjson");
    response.headers_mut().insert(CONTENT_TYPE, lines);
    Ok(response)
}

/// What follows a request, read as fast as the operation takes it. What it does not take is passed over for
/// a while: closing on somebody who still sends would take the answer from under them.
fn input(received: BytesMut, mut body: Incoming) -> Input {
    let (sender, input) = Input::channel();
    tokio::spawn(async move {
        pass_on(received, &mut body, sender).await;
        let rest = async { while let Some(Ok(_)) = body.frame().await {} };
        let _ = timeout(REQUEST_DEADLINE, rest).await;
    });
    input
}

/// Until the input ends, or nobody takes it any more.
async fn pass_on(received: BytesMut, body: &mut Incoming, sender: mpsc::Sender<io::Result<Bytes>>) {
    if !received.is_empty() && sender.send(Ok(received.freeze())).await.is_err() {
        return;
    }
    loop {
        let piece = tokio::select! {
            () = sender.closed() => return,
            frame = timeout(INPUT_DEADLINE, body.frame()) => match frame {
                Ok(None) => return,
                Ok(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => Ok(data),
                    Err(_) => continue,
                },
                Ok(Some(Err(error))) => Err(io::Error::other(error)),
                Err(_) => Err(io::ErrorKind::TimedOut.into()),
            },
        };
        let is_broken = piece.is_err();
        if sender.send(piece).await.is_err() || is_broken {
            return;
        }
    }
}

fn refusal(status: StatusCode, why: impl Into<Bytes>) -> Response<Full<Bytes>> {
    page_of(status, "text/plain; charset=utf-8", why)
}
