//! The operator's doors: a listener for metrics and health, which changes nothing, and a socket through
//! which the cache is tended.
//!
//! | file | is |
//! | --- | --- |
//! | `mod.rs`, `readiness` | the pages; whether hits can be served |
//! | `status` | the status page, and the same as JSON below `/api/v1/` |
//! | `socket` | the admin socket: pages, and operations on the cache |
//! | `transport` | operations over HTTP, and the side that asks |
//! | `cache_dir` | that both sides mean the same cache |
//! | `accepting` | connections, a few at a time |
//!
//! `/metrics` is OpenMetrics text, `/healthz` says that the process answers, `/readyz` whether
//! hits can be served and what is degraded. What is degraded is asked for through [`Readiness`];
//! this module knows no mechanism by name.

mod accepting;
mod cache_dir;
mod readiness;
mod socket;
mod status;
mod transport;

pub use readiness::{Degraded, Health, Phase, Readiness};
pub use socket::{AdminSocket, SocketError};
pub use status::{RateLimit, Status, Trouble, UpstreamState};
pub use transport::RemoteOperations;

use std::future::Future;
use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, X_CONTENT_TYPE_OPTIONS,
};
use http::uri::Authority;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use tokio::net::TcpListener;

use accepting::Bounds;

use crate::telemetry::MetricsPage;

/// Scrapers and probes are few; more is somebody else. Nothing here takes long, and a reader that stops
/// must not hold one of the few places. Nor may one client have them all: who runs the program ends it where a
/// probe of its health gets none.
const BOUNDS: Bounds = Bounds {
    connections: 64,
    from_one: 16,
    life: Duration::from_secs(300),
};

/// What the listener shows. Cloning is cheap.
#[derive(Clone)]
pub struct Admin {
    metrics: MetricsPage,
    readiness: Readiness,
    status: Status,
}

impl Admin {
    /// Pages over these values.
    pub fn new(metrics: MetricsPage, readiness: Readiness, status: Status) -> Self {
        Self {
            metrics,
            readiness,
            status,
        }
    }

    /// Answers on `listener` until `shutdown` is done; then connections are dropped, whatever
    /// they are doing.
    ///
    /// # Cancel safety
    /// Safe: dropping the future closes the listener and all connections.
    pub async fn run(self, listener: TcpListener, shutdown: impl Future<Output = ()>) {
        let is_for_this_host = listener.local_addr().is_ok_and(|at| at.ip().is_loopback());
        accepting::serve(&listener, BOUNDS, shutdown, move |request| {
            let admin = self.clone();
            async move {
                match is_for_this_host && names_another_host(&request) {
                    true => text(StatusCode::MISDIRECTED_REQUEST, ANOTHER_HOST),
                    false => admin.answer(&request).await,
                }
            }
        })
        .await;
    }

    async fn answer<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        let mut response = match path {
            _ if !PAGES.contains(&path) => text(StatusCode::NOT_FOUND, "not found\n"),
            _ if *request.method() != Method::GET && *request.method() != Method::HEAD => {
                let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "GET and HEAD only\n");
                let allowed = HeaderValue::from_static("GET, HEAD");
                response.headers_mut().insert(ALLOW, allowed);
                response
            }
            "/metrics" => match self.metrics.render() {
                Ok(page) => page_of(StatusCode::OK, MetricsPage::CONTENT_TYPE, page),
                Err(_) => text(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "the metrics cannot be written\n",
                ),
            },
            "/healthz" => text(StatusCode::OK, "ok\n"),
            "/readyz" => {
                let strict = request.uri().query().is_some_and(is_strict);
                let state = self.readiness.state();
                let status = if state.ready(strict) {
                    StatusCode::OK
                } else {
                    StatusCode::SERVICE_UNAVAILABLE
                };
                page_of(status, "application/json", state.to_json())
            }
            path => self.how_things_stand(path).await,
        };
        let no_store = HeaderValue::from_static("no-store");
        response.headers_mut().insert(CACHE_CONTROL, no_store);
        response
    }

    async fn how_things_stand(&self, path: &str) -> Response<Full<Bytes>> {
        let Some(told) = self.status.tell(path, &self.readiness.state()).await else {
            let why = "the cache cannot be looked at\n";
            return text(StatusCode::SERVICE_UNAVAILABLE, why);
        };
        if path != "/" {
            return page_of(StatusCode::OK, "application/json", told);
        }
        let mut response = page_of(StatusCode::OK, "text/html; charset=utf-8", told);
        let policy = HeaderValue::from_static(
            "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
        );
        let headers = response.headers_mut();
        headers.insert(CONTENT_SECURITY_POLICY, policy);
        let no_sniffing = HeaderValue::from_static("nosniff");
        headers.insert(X_CONTENT_TYPE_OPTIONS, no_sniffing);
        response
    }
}

/// All there is to see.
const PAGES: [&str; 7] = [
    "/",
    "/metrics",
    "/healthz",
    "/readyz",
    "/api/v1/status",
    "/api/v1/cache/stats",
    "/api/v1/cache/images",
];

const ANOTHER_HOST: &str =
    "this listener is for its own host: ask by its address, or as localhost\n";

/// Whether the request came by a name that is not this host's own. A page on the web can have its name
/// resolve to the loopback address, and would then read with a browser's help what is for this host alone.
fn names_another_host<B>(request: &Request<B>) -> bool {
    let mut hosts = request.headers().get_all(HOST).iter();
    hosts.any(|host| {
        let authority = Authority::try_from(host.as_bytes());
        !authority.is_ok_and(|authority| {
            let host = authority.host();
            let address = host.trim_start_matches('[').trim_end_matches(']');
            host.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok()
        })
    })
}

/// `?strict`, `?strict=1` and their like.
fn is_strict(query: &str) -> bool {
    query
        .split('&')
        .any(|part| part == "strict" || part.starts_with("strict="))
}

fn text(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    page_of(status, "text/plain; charset=utf-8", body)
}

fn page_of(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let content_type = HeaderValue::from_static(content_type);
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::operations::Running;
    use crate::telemetry::Metrics;
    use http_body_util::BodyExt as _;

    fn admin(health: Health) -> Admin {
        let readiness = Readiness::new(move || health.clone());
        let status = Status::of(|_| Running::spawn(|_| async { Ok(()) }), Vec::new);
        Admin::new(Metrics::new().finish(), readiness, status)
    }

    async fn ask(admin: &Admin, method: &str, target: &str) -> (u16, String) {
        let request = Request::builder()
            .method(method)
            .uri(target)
            .body(())
            .expect("request");
        let response = admin.answer(&request).await;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.expect("body");
        let body = body.to_bytes();
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    #[tokio::test]
    async fn readiness_follows_phase_degradation_and_strictness() {
        let degraded = Health {
            unusable: None,
            degraded: vec![Degraded {
                what: "upstream",
                why: "no credentials".to_owned(),
            }],
        };
        let admin = admin(degraded);
        assert_eq!(ask(&admin, "GET", "/readyz").await.0, 503);
        admin.readiness.enter(Phase::Serving);
        let (status, body) = ask(&admin, "GET", "/readyz").await;
        assert_eq!(status, 200);
        let body: serde_json::Value = serde_json::from_str(&body).expect("JSON");
        assert_eq!(body["phase"], "serving");
        assert_eq!(body["degraded"][0]["what"], "upstream");
        assert_eq!(body["degraded"][0]["why"], "no credentials");
        assert_eq!(ask(&admin, "GET", "/readyz?strict").await.0, 503);
        assert_eq!(ask(&admin, "GET", "/readyz?strict=1").await.0, 503);
        assert_eq!(ask(&admin, "GET", "/readyz?stricter").await.0, 200);
        admin.readiness.enter(Phase::Draining);
        assert_eq!(ask(&admin, "GET", "/readyz").await.0, 503);
        assert_eq!(ask(&admin, "GET", "/healthz").await.0, 200);
    }

    #[tokio::test]
    async fn an_unusable_store_is_not_ready() {
        let admin = admin(Health {
            unusable: Some("gone".to_owned()),
            degraded: Vec::new(),
        });
        admin.readiness.enter(Phase::Serving);
        let (status, body) = ask(&admin, "GET", "/readyz").await;
        assert_eq!(status, 503);
        assert!(body.contains("\"unusable\":\"gone\""), "{body}");
    }

    #[test]
    fn another_hosts_name_is_told_from_this_ones() {
        let named = |host: &str| {
            let request = Request::builder().header(HOST, host).body(());
            names_another_host(&request.expect("request"))
        };
        for own in [
            "localhost",
            "LocalHost:9090",
            "127.0.0.1:9090",
            "[::1]:9090",
            "10.0.0.7",
        ] {
            assert!(!named(own), "{own}");
        }
        for other in [
            "evil.test",
            "evil.test:9090",
            "localhost.evil.test",
            "127.0.0.1.evil.test",
            "",
        ] {
            assert!(named(other), "{other:?}");
        }
        assert!(!names_another_host(&Request::new(())));
    }

    #[tokio::test]
    async fn pages_are_read_only_and_few() {
        let admin = admin(Health::default());
        // Nothing is told of a cache that tells nothing.
        assert_eq!(ask(&admin, "GET", "/").await.0, 503);
        assert_eq!(ask(&admin, "POST", "/").await.0, 405);
        assert_eq!(ask(&admin, "DELETE", "/api/v1/cache/images").await.0, 405);
        assert_eq!(ask(&admin, "GET", "/api/v1/operations").await.0, 404);
        assert_eq!(ask(&admin, "GET", "/metrics/").await.0, 404);
        assert_eq!(ask(&admin, "POST", "/metrics").await.0, 405);
        assert_eq!(ask(&admin, "DELETE", "/readyz").await.0, 405);
        let (status, page) = ask(&admin, "GET", "/metrics").await;
        assert_eq!(status, 200);
        assert!(page.ends_with("# EOF\n"));
    }
}
