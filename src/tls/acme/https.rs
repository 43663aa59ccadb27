//! HTTPS to an ACME directory: few requests, each on a connection of its own.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient, Problem};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::oci::header::retry_after;
use crate::upstream::Egress;

/// For one request, from the look-up of the name to the last byte of its answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Chains of certificates are the largest answers there are.
const MAX_ANSWER_BYTES: usize = 1 << 20;

/// The form in which the protocol tells what is wrong (RFC 8555, 6.7).
const PROBLEM: &[u8] = b"application/problem+json";

/// Speaks to servers whose certificate comes from a CA that the system trusts, or from one named besides.
/// Clones share what the directory asked for.
#[derive(Clone)]
pub(super) struct Https {
    tls: TlsConnector,
    egress: Option<Egress>,
    asked: Arc<Mutex<Option<Duration>>>,
}

impl Https {
    /// Trusting `extra` besides what the system trusts, through a proxy on the way out where there is one.
    pub(super) fn new(
        extra: &[CertificateDer<'static>],
        egress: Option<Egress>,
    ) -> Result<Self, rustls::Error> {
        Ok(Self {
            tls: connector(extra)?,
            egress,
            asked: Arc::default(),
        })
    }

    /// The same, trusting what the system trusts by now, and `extra`.
    pub(super) fn trusting(
        &self,
        extra: &[CertificateDer<'static>],
    ) -> Result<Self, rustls::Error> {
        Ok(Self {
            tls: connector(extra)?,
            egress: self.egress.clone(),
            asked: Arc::clone(&self.asked),
        })
    }

    /// How long the directory asked to be left alone in its last answer, if that was a refusal which said so.
    pub(super) fn asked_pause(&self) -> Option<Duration> {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, pause: Option<Duration>) {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = pause;
    }

    async fn exchange(
        self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> io::Result<Response<Full<Bytes>>> {
        let (mut head, body) = request.into_parts();
        let authority = head.uri.authority().cloned();
        let authority = authority.ok_or_else(|| invalid("the URL has no host"))?;
        if head.uri.scheme_str() != Some("https") {
            return Err(invalid("the URL is not https://"));
        }
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let port = authority.port_u16().unwrap_or(443);
        let tunnel = match &self.egress {
            Some(egress) => egress.tunnel(&head.uri).await?,
            None => None,
        };
        let stream = match tunnel {
            Some(stream) => stream,
            None => TcpStream::connect((host.as_str(), port)).await?,
        };
        let name = ServerName::try_from(host).map_err(io::Error::other)?;
        let stream = self.tls.connect(name, stream).await?;

        let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
        let path: Uri = path.parse().map_err(io::Error::other)?;
        let host = HeaderValue::from_str(authority.as_str()).map_err(io::Error::other)?;
        head.headers.insert(HOST, host);
        head.uri = path;
        // Buffered, so that the length is declared: servers of this protocol need not take chunks.
        let Ok(body) = body.collect().await;
        let request = Request::from_parts(head, Full::new(body.to_bytes()));

        let io = TokioIo::new(stream);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io)
            .await
            .map_err(io::Error::other)?;
        let exchange = async {
            let answer = sender
                .send_request(request)
                .await
                .map_err(io::Error::other)?;
            let (head, body) = answer.into_parts();
            let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await;
            let body = body.map_err(io::Error::other)?.to_bytes();
            Ok(Response::from_parts(head, Full::new(body)))
        };
        let mut connection = std::pin::pin!(connection);
        let mut exchange = std::pin::pin!(exchange);
        let mut is_open = true;
        loop {
            tokio::select! {
                answer = &mut exchange => return answer,
                // How it ended shows in the exchange.
                _ = &mut connection, if is_open => is_open = false,
            }
        }
    }
}

fn connector(extra: &[CertificateDer<'static>]) -> Result<TlsConnector, rustls::Error> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    for root in extra {
        roots.add(root.clone())?;
    }
    let config = ClientConfig::builder_with_provider(Arc::new(crate::tls::provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// What is told of a refusal where no answer in the protocol's own form is expected, or comes.
fn refused(status: StatusCode, body: &[u8]) -> String {
    match serde_json::from_slice::<Problem>(body) {
        Ok(Problem {
            detail: Some(detail),
            ..
        }) => format!("it answered {status}: {detail}"),
        _ => format!("it answered {status}"),
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

impl HttpClient for Https {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let this = self.clone();
        let is_signed = request.method() == Method::POST;
        let exchange = self.clone().exchange(request);
        Box::pin(async move {
            this.note(None);
            match tokio::time::timeout(REQUEST_TIMEOUT, exchange).await {
                Ok(Ok(answer)) => {
                    // Where nothing is refused it tells how soon to look again, which is looked after elsewhere.
                    let status = answer.status();
                    if !status.is_client_error() && !status.is_server_error() {
                        return Ok(BytesResponse::from(answer));
                    }
                    this.note(retry_after(answer.headers(), SystemTime::now()));
                    let kind = answer.headers().get(CONTENT_TYPE);
                    if is_signed && kind.is_some_and(|kind| kind.as_bytes().starts_with(PROBLEM)) {
                        return Ok(BytesResponse::from(answer));
                    }
                    let Ok(body) = answer.into_body().collect().await;
                    Err(Error::Other(refused(status, &body.to_bytes()).into()))
                }
                Ok(Err(error)) => Err(Error::Other(Box::new(error))),
                Err(_) => Err(Error::Other("no answer within 30s".into())),
            }
        })
    }
}
