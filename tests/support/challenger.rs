//! What stands before a registry and tells why a token was refused in another's words: nothing of it, as
//! Harbor and Quay do.

use std::convert::Infallible;
use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;

/// How a request that is refused is challenged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// By its Bearer challenge, without an error.
    Quay,
    /// By Basic, if any credentials came.
    Harbor,
}

/// Listens before the registry at `registry`; where. It ends with the test's runtime.
pub async fn challenge_like(manner: Manner, registry: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let client = client.clone();
            let answer = service_fn(move |request: Request<Incoming>| {
                let client = client.clone();
                async move {
                    let has_credentials = request.headers().contains_key(header::AUTHORIZATION);
                    let (mut head, body) = request.into_parts();
                    let path = head.uri.path_and_query().expect("a path");
                    head.uri = format!("http://{registry}{path}")
                        .parse::<Uri>()
                        .expect("one");
                    let body = body.collect().await.map_err(|_| ()).expect("a body");
                    let request = Request::from_parts(head, Full::from(body.to_bytes()));
                    let answer = client.request(request).await.expect("an answer");
                    Ok::<_, Infallible>(manner.tell(answer, has_credentials))
                }
            });
            let stream = TokioIo::new(stream);
            tokio::spawn(async move {
                let serving = hyper::server::conn::http1::Builder::new();
                let _ended = serving.serve_connection(stream, answer).await;
            });
        }
    });
    address
}

impl Manner {
    fn tell(self, mut answer: Response<Incoming>, has_credentials: bool) -> Response<Incoming> {
        if answer.status() != StatusCode::UNAUTHORIZED {
            return answer;
        }
        let challenge = answer.headers()[header::WWW_AUTHENTICATE].to_str();
        let challenge = challenge.expect("text");
        let told = match self {
            Self::Harbor if has_credentials => "Basic realm=\"harbor\"".to_owned(),
            Self::Harbor | Self::Quay => {
                let parts = challenge.split(",error=").next();
                parts.expect("one at least").to_owned()
            }
        };
        let told = HeaderValue::try_from(told).expect("a value");
        answer.headers_mut().insert(header::WWW_AUTHENTICATE, told);
        answer
    }
}
