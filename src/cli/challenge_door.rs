//! The listener of HTTP-01: it answers what an ACME directory asks for, and nothing else.

use std::convert::Infallible;
use std::future::Future;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use tokio::net::TcpListener;

use crate::server::{self, Handler, Listener, Refusal, ServerMetrics, ServerOptions};
use crate::tls::Challenges;

/// A directory looks from a few places at once, which behind a balancer have one address.
const MAX_CONNECTIONS: usize = 64;
const MAX_CONNECTIONS_PER_ADDRESS: usize = 16;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Serves until `shutdown` resolves.
pub(super) async fn run(
    socket: TcpListener,
    challenges: Challenges,
    shutdown: impl Future<Output = ()>,
) {
    let listeners = vec![Listener { socket, tls: None }];
    let options = ServerOptions {
        max_connections: MAX_CONNECTIONS,
        max_connections_per_address: MAX_CONNECTIONS_PER_ADDRESS,
        ..ServerOptions::default()
    };
    // What it counts is of no interest beside the registry's own.
    let metrics = ServerMetrics::default();
    server::run(
        listeners,
        move |_| ChallengeDoor(challenges.clone()),
        options,
        metrics,
        shutdown,
    )
    .await;
}

#[derive(Clone)]
struct ChallengeDoor(Challenges);

impl ChallengeDoor {
    fn answer(status: StatusCode, text: String) -> Response<UnsyncBoxBody<Bytes, BoxError>> {
        let body = Full::from(text).map_err(|error: Infallible| match error {});
        let mut response = Response::new(body.boxed_unsync());
        *response.status_mut() = status;
        response
    }
}

impl Handler for ChallengeDoor {
    type Body = UnsyncBoxBody<Bytes, BoxError>;

    async fn call(&self, request: Request<Incoming>) -> Response<Self::Body> {
        match self.0.answer(request.uri().path()) {
            Some(answer) if request.method() == Method::GET => Self::answer(StatusCode::OK, answer),
            _ => Self::answer(StatusCode::NOT_FOUND, String::new()),
        }
    }

    fn refuse(&self, refusal: Refusal) -> Response<Self::Body> {
        Self::answer(refusal.status(), String::new())
    }
}
