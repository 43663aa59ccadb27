//! What a request means: the story of a request, top to bottom.
//!
//! [`Proxy::answer`] is that story: the host it came to, who is asking, what is asked, whether they may,
//! and then one of [`pull`], [`lists`], [`catalog`] and [`push`]. What goes wrong becomes a [`Refusal`], and only
//! [`Refusal::answer`] says with what status. Content comes from the fill gate alone; nothing of a
//! client's request is copied to an upstream, and no header of an upstream's answer is copied back.
//!
//! It knows nothing of sockets, of TLS, or of where content is kept.

mod body;
mod catalog;
mod completion;
mod error;
mod forwarded;
mod host;
mod lists;
mod mount;
mod pull;
mod pump;
mod push;
mod push_fault;
mod reply;
mod uploads;
mod verdicts;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::header::{self, HeaderMap, HeaderValue};
use http::request;
use http::{Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

pub use body::Body;
pub use completion::Peer;
pub use verdicts::AskedUpstream;

use crate::access::{
    Access, Action, Certified, Content, Denied, Login, Network, PerClient, Shown, Turn, Turns,
    Wanted, Who,
};
use crate::cache::StoredManifest;
use crate::fill::{FillError, Fills};
use crate::oci::{
    self, Digest, ParseReferenceError, ParseRequestError, Reference, RepoKey, RepositoryName,
    Routes, error_body, query_value,
};
use crate::telemetry::{Denial, RequestKind, RequestMetrics};
use crate::upstream::{UpstreamSet, Upstreams};
use catalog::Asking;
use completion::Completion;
use error::Refusal;
use host::host;
use mount::Mount;
use push::Push;
use reply::Reply;
use uploads::Uploads;
use verdicts::{asked_with, told};

const CLOSE: HeaderValue = HeaderValue::from_static("close");

/// Most requests at once, of which one client has no more than half. One that a client does not take costs
/// some 25 KiB, and an h2 connection has many.
const MAX_REQUESTS: usize = 8192;

/// Most lists of tags, repositories or referrers at once, of which one client has no more than half. An upstream may
/// answer with all there are, which takes some ten MiB until it is told.
const MAX_LISTS: usize = 8;
/// How long a list waits for its turn.
const LIST_PATIENCE: Duration = Duration::from_secs(20);

/// Most manifests of more than 64 KiB that are being pushed at once, of which one client has no more than half. Each
/// is held whole, and takes up to 4 MiB.
const MAX_LONG_MANIFESTS: usize = 16;

/// Most manifests being put, and deletes, at once: they go on without their clients, of which one has no more than
/// half.
const MAX_CHANGES: usize = 256;

/// How a request came.
#[derive(Debug)]
pub struct Via<'a> {
    /// Who is at the other end of the connection.
    pub peer: &'a Peer,
    /// The listener's address is one that only this machine can reach: it answers to any name.
    pub is_loopback: bool,
    /// Whom the client's certificate names, where it showed a valid one.
    pub certificate: Option<Certified>,
    /// Who logged in on the connection before.
    pub login: &'a Login,
    /// No TLS is between us and the client, so a body may go to the socket as it is.
    pub is_plain: bool,
}

/// The registry API, as clients see it. Clone is cheap.
#[derive(Clone)]
pub struct Proxy {
    parts: Arc<Parts>,
    requests: PerClient,
    lists: Turns,
    long_manifests: Turns,
    changes: Turns,
    uploads: Uploads,
}

/// What requests are judged by. It may be another while the proxy runs; a request is judged by one.
#[derive(Debug)]
pub struct Policy {
    /// The names we answer to, and where repositories lead; loopback listeners answer to any name.
    pub routes: Arc<Routes>,
    /// Balancers, whose `X-Forwarded-For` tells whose request it is.
    pub trusted_proxies: Vec<Network>,
    /// Who may do what.
    pub access: Access,
    /// Where the routes lead: they are found for as long as a request is judged by this.
    pub upstreams: UpstreamSet,
    /// Who is told what clients pull. Nobody waits for it: what it has no room for, it is not told.
    pub pulls: Option<mpsc::Sender<Pulled>>,
}

impl Policy {
    /// The same with other decisions about who may do what.
    #[must_use]
    pub fn with_access(&self, access: Access) -> Self {
        Self {
            routes: Arc::clone(&self.routes),
            trusted_proxies: self.trusted_proxies.clone(),
            access,
            upstreams: Arc::clone(&self.upstreams),
            pulls: self.pulls.clone(),
        }
    }
}

/// What a [`Proxy`] is made of.
pub struct Parts {
    /// What requests are judged by from now on.
    pub policy: Arc<ArcSwap<Policy>>,
    /// Where lists of tags are asked for.
    pub upstreams: Upstreams,
    /// The gate to content.
    pub fills: Fills,
    /// What is counted.
    pub metrics: Arc<RequestMetrics>,
}

/// What a client was given, while it is being sent.
#[derive(Clone, Debug)]
pub enum Pulled {
    /// A manifest of a repository.
    Manifest(RepoKey, StoredManifest),
    /// A blob, or a range of one that is or will be cached.
    Blob(RepoKey, Digest),
}

/// A request that was let in, with what its answer needs of it.
struct Asked<'a> {
    headers: &'a HeaderMap,
    is_head: bool,
    /// The bytes go to the socket as they are: no TLS is in between.
    is_plain: bool,
    pulls: Option<&'a mpsc::Sender<Pulled>>,
    /// Where the client is.
    client: IpAddr,
}

impl Asked<'_> {
    fn tell(&self, pulled: impl FnOnce() -> Pulled) {
        if let Some(pulls) = self.pulls.filter(|_| !self.is_head) {
            let _ = pulls.try_send(pulled());
        }
    }
}

impl Proxy {
    /// Puts the parts together.
    pub fn new(parts: Parts) -> Self {
        Self {
            parts: Arc::new(parts),
            requests: PerClient::default(),
            lists: Turns::new(MAX_LISTS),
            long_manifests: Turns::new(MAX_LONG_MANIFESTS),
            changes: Turns::new(MAX_CHANGES),
            uploads: Uploads::default(),
        }
    }

    /// Waits until what changes a repository, and goes on without its client, has ended and is noted, until
    /// `deadline` at the latest.
    pub async fn drain(&self, deadline: Instant) {
        let _ = timeout_at(deadline, self.changes.until_unwanted()).await;
    }

    /// Answers a request, whatever it is.
    ///
    /// # Cancel safety
    /// The caller may leave at any time: fills and questions to the upstream go on by themselves.
    pub fn call<'a>(
        &'a self,
        request: Request<Incoming>,
        via: Via<'a>,
    ) -> impl Future<Output = Response<Body>> + Send + 'a {
        let (head, body) = request.into_parts();
        async move {
            let metrics = Arc::clone(&self.parts.metrics);
            let method = Some(head.method.clone());
            let mut completion = Completion::begin(metrics, method, via.peer.clone());
            completion.agent = agent(&head.headers);
            let reply = match self.answer(&head, body, &via, &mut completion).await {
                Ok(reply) => reply,
                Err(refusal) => {
                    if refusal.is_of_target() {
                        completion.target = Some(target(&head));
                    }
                    let mut reply = self.refusal(&refusal, &mut completion);
                    // Whoever reads another host than we do may read another request behind it, too.
                    if matches!(refusal, Refusal::Host) && head.version < Version::HTTP_2 {
                        reply.say(header::CONNECTION, CLOSE);
                    }
                    reply
                }
            };
            let reply = match head.method {
                Method::HEAD => reply.without_content(),
                _ => reply,
            };
            reply.finish(completion, head.headers)
        }
    }

    /// Words the answer to a request whose framing was refused with `status`, because of `reason`.
    pub fn refuse(&self, status: StatusCode, reason: String, via: &Via<'_>) -> Response<Body> {
        let metrics = Arc::clone(&self.parts.metrics);
        let mut completion = Completion::begin(metrics, None, via.peer.clone());
        let reply = self.refusal(&Refusal::Framing(status, reason), &mut completion);
        reply.finish(completion, HeaderMap::new())
    }

    /// The story of a request.
    async fn answer(
        &self,
        request: &request::Parts,
        body: Incoming,
        via: &Via<'_>,
        completion: &mut Completion,
    ) -> Result<Reply, Refusal> {
        let policy = self.parts.policy.load_full();
        let client = forwarded::client(&request.headers, via.peer.address, &policy.trusted_proxies);
        completion.from.client = client.map_err(|_| Refusal::Forwarded)?;
        let address = completion.from.address();
        let place = self
            .requests
            .take_of(MAX_REQUESTS, address, MAX_REQUESTS / 2);
        completion.place = Some(place.ok_or(Refusal::TooMany)?);
        let host = host(request)?;
        let domain = policy.routes.domain(host);
        if domain.is_none() && !via.is_loopback {
            return Err(Refusal::Misdirected);
        }

        let shown = Shown {
            authorization: request.headers.get_all(header::AUTHORIZATION),
            certificate: via.certificate.as_ref(),
            login: via.login,
            address: completion.from.address(),
            domain,
        };
        let access = &policy.access;
        let caller = access.identify(shown).await?;
        completion.who = Some(caller.who().clone());

        let (method, uri) = (&request.method, &request.uri);
        let wanted = oci::Request::parse(uri.path(), uri.query());
        let wanted = wanted.map_err(|error| match (method, error) {
            (
                &Method::GET | &Method::HEAD,
                ParseRequestError::Reference(ParseReferenceError::Tag(error)),
            ) => Refusal::NoTag(error),
            (method, error) if METHODS.contains(method) => Refusal::Request(error),
            _ => Refusal::NoMethod {
                allowed: "GET, HEAD, POST, PUT, PATCH, DELETE",
            },
        })?;
        note(completion, &wanted);
        let action = action(method, &wanted)?;

        let ns = query_value(uri.query(), "ns");
        let Some(repository) = wanted.repository() else {
            return match &wanted {
                oci::Request::Ping if action == Action::Pull => Ok(Reply::json("{}")),
                oci::Request::Catalog { limit, last } if action == Action::Pull => {
                    let ns = ns?;
                    let turn = self.turn_at_lists(completion).await?;
                    let asking = Asking {
                        policy: &policy,
                        caller: &caller,
                        domain,
                        ns: ns.as_deref(),
                        turn: &turn,
                    };
                    let Parts {
                        fills, upstreams, ..
                    } = &*self.parts;
                    catalog::catalog(fills, upstreams, &asking, *limit, last.as_deref()).await
                }
                _ => Err(no_method(&wanted)),
            };
        };
        // Where a name does not lead anywhere is told only to those who may do this behind it.
        let repo = ns.clone().map_err(Refusal::from);
        let repo = repo.and_then(|ns| route(&policy.routes, domain, ns.as_deref(), repository));
        completion.upstream = repo.as_ref().ok().map(|repo| Arc::clone(&repo.upstream));
        if let Ok(Some(ns)) = &ns {
            completion.ns = Some(completion::cut(ns));
        }
        let wish = |action| Wanted {
            repository,
            // What leads nowhere is of no upstream that a rule could name.
            upstream: repo.as_ref().map_or("", |repo| &*repo.upstream),
            repo: repo.as_ref().ok(),
            action,
            content: content(method, &wanted),
        };
        // Push includes the HEADs that a push makes, and those are answered as a push needs it. What the
        // bearer of a token may see is ECR's to say, of HEADs as well.
        let is_of_push = looks(method, &wanted) && *caller.who() != Who::TokenBearer;
        let right = match is_of_push {
            true => match access.decide(&caller, &wish(Action::Push)).await {
                Ok(right) => Ok(right),
                Err(_) => access.decide(&caller, &wish(action)).await,
            },
            false => access.decide(&caller, &wish(action)).await,
        }?;
        let (repo, ns) = (repo?, ns?);
        if action != Action::Pull {
            let mount = match (method, &wanted) {
                (
                    &Method::POST,
                    oci::Request::Uploads {
                        mount: Some((digest, from)),
                        ..
                    },
                ) => {
                    let at = (domain, ns.as_deref());
                    Mount::permitted(&policy, &caller, at, (*digest, from), &repo).await
                }
                _ => None,
            };
            let push = Push {
                mount,
                parts: &self.parts,
                uploads: &self.uploads,
                long_manifests: &self.long_manifests,
                changes: &self.changes,
                right: &right,
                address,
                upstream: asked_with(&self.parts.upstreams.of(&repo)?, &right)?,
                repo: &repo,
                repository,
                ns: ns.as_deref(),
            };
            // In memory of its own, as blobs and referrers below: what a manifest needs is a fifth of it.
            let answer = Box::pin(push.answer(method, &request.headers, &wanted, body)).await;
            return answer.map_err(|refusal| match refusal {
                Refusal::Content(FillError::Upstream(error)) => told(&right, error),
                refusal => refusal,
            });
        }

        let asked = Asked {
            headers: &request.headers,
            is_head: method == Method::HEAD,
            is_plain: via.is_plain,
            pulls: policy.pulls.as_ref(),
            client: completion.from.address(),
        };
        match &wanted {
            oci::Request::Manifest { reference, .. } => {
                pull::manifest(&self.parts.fills, &right, &repo, reference, &asked).await
            }
            oci::Request::Blob { digest, .. } => {
                let asking = pull::blob(&self.parts.fills, &right, &repo, *digest, &asked);
                Box::pin(asking).await
            }
            oci::Request::Tags { limit, last, .. } => {
                let turn = self.turn_at_lists(completion).await?;
                let as_asked = lists::AsAsked {
                    repository,
                    ns: ns.as_deref(),
                    turn: &turn,
                };
                let (fills, last) = (&self.parts.fills, last.as_deref());
                lists::tags(fills, &right, &repo, &as_asked, *limit, last).await
            }
            oci::Request::Referrers {
                digest,
                artifact_type,
                ..
            } => {
                // Whoever leaves ends the question, so nothing else has to keep it.
                let _turn = self.turn_at_lists(completion).await?;
                let (fills, artifact_type) = (&self.parts.fills, artifact_type.as_deref());
                let asking = lists::referrers(fills, &right, &repo, *digest, artifact_type);
                Box::pin(asking).await
            }
            oci::Request::Ping
            | oci::Request::Catalog { .. }
            | oci::Request::Uploads { .. }
            | oci::Request::Upload { .. } => Err(no_method(&wanted)),
        }
    }

    /// A turn at lists, which the request keeps until its answer is sent.
    async fn turn_at_lists(&self, completion: &mut Completion) -> Result<Arc<Turn>, Refusal> {
        let turn = self.lists.take(Some(completion.from.address()));
        let turn = tokio::time::timeout(LIST_PATIENCE, turn).await;
        let turn = Arc::new(turn.map_err(|_| Refusal::TooMany)?);
        completion.list = Some(Arc::clone(&turn));
        Ok(turn)
    }

    fn count_denial(&self, refusal: &Refusal) {
        let reason = match refusal {
            Refusal::Denied(Denied::Unauthenticated | Denied::BadRequest) => {
                Denial::Unauthenticated
            }
            Refusal::Denied(Denied::Forbidden) => Denial::Forbidden,
            Refusal::Denied(Denied::Busy) => Denial::Busy,
            Refusal::Denied(Denied::Undecided) => Denial::Undecided,
            Refusal::Misdirected | Refusal::Host => Denial::Domain,
            _ => return,
        };
        self.parts.metrics.denied(reason);
    }

    fn refusal(&self, refusal: &Refusal, completion: &mut Completion) -> Reply {
        self.count_denial(refusal);
        completion.failed(refusal);
        let answer = refusal.answer();
        let message = format!("{} (request {})", answer.message, &*completion.id);
        let mut reply = Reply::json(error_body(&answer.code, &message));
        reply.status = answer.status;
        if answer.status == StatusCode::UNAUTHORIZED {
            let challenge = self.parts.policy.load().access.challenge().clone();
            reply.say(header::WWW_AUTHENTICATE, challenge);
        }
        if let Some(pause) = answer.retry_after {
            reply.say(header::RETRY_AFTER, pause.as_secs().max(1).into());
        }
        for (name, value) in refusal.headers() {
            reply.say(name, value);
        }
        reply
    }
}

/// Which upstream repository a name means. containerd's `ns` tells which registry the image was named after:
/// it is looked up and never dialled.
fn route(
    routes: &Routes,
    domain: Option<&str>,
    ns: Option<&str>,
    repository: &RepositoryName,
) -> Result<RepoKey, Refusal> {
    let led = routes.find(domain, ns, repository);
    led.map(|led| led.repo).ok_or(match ns {
        Some(_) => Refusal::ForeignNamespace,
        None => Refusal::Unrouted,
    })
}

/// What somebody must be allowed to do for this to be answered.
fn action(method: &Method, wanted: &oci::Request) -> Result<Action, Refusal> {
    match (method, wanted) {
        // Whatever is done below an upload, asking for its state and giving it up included, pushes.
        (
            &Method::GET
            | &Method::HEAD
            | &Method::POST
            | &Method::PUT
            | &Method::PATCH
            | &Method::DELETE,
            oci::Request::Uploads { .. } | oci::Request::Upload { .. },
        )
        | (&Method::POST | &Method::PUT | &Method::PATCH, _) => Ok(Action::Push),
        (&Method::GET | &Method::HEAD, _) => Ok(Action::Pull),
        (&Method::DELETE, _) => Ok(Action::Delete),
        _ => Err(no_method(wanted)),
    }
}

/// Those that the API has somewhere.
const METHODS: [Method; 6] = [
    Method::GET,
    Method::HEAD,
    Method::POST,
    Method::PUT,
    Method::PATCH,
    Method::DELETE,
];

/// There is no such method for this.
fn no_method(wanted: &oci::Request) -> Refusal {
    Refusal::NoMethod {
        allowed: wanted.methods(),
    }
}

/// Whether this only asks if content is there: pushes do that before they send it.
fn looks(method: &Method, wanted: &oci::Request) -> bool {
    let is_content = matches!(
        wanted,
        oci::Request::Manifest { .. } | oci::Request::Blob { .. }
    );
    method == Method::HEAD && is_content
}

/// What a pull of this reads.
fn content<'a>(method: &Method, wanted: &'a oci::Request) -> Content<'a> {
    match wanted {
        oci::Request::Manifest { reference, .. } => Content::Manifest(reference),
        oci::Request::Referrers { digest, .. } => Content::Referrers(*digest),
        oci::Request::Blob { digest, .. } if method == Method::HEAD => Content::BlobHead(*digest),
        oci::Request::Blob { digest, .. } => Content::Blob(*digest),
        oci::Request::Ping
        | oci::Request::Catalog { .. }
        | oci::Request::Tags { .. }
        | oci::Request::Uploads { .. }
        | oci::Request::Upload { .. } => Content::Uncached,
    }
}

/// Where a request went, for the log: host and path, with the `ns` where that is what is wrong. No other part of
/// a query is told.
fn target(request: &request::Parts) -> String {
    let host = host(request).unwrap_or_default();
    let path = request.uri.path();
    let ns = query_value(request.uri.query(), "ns").ok().flatten();
    completion::cut(&match ns {
        Some(ns) => format!("{host}{path}?ns={ns}"),
        None => format!("{host}{path}"),
    })
}

fn agent(headers: &HeaderMap) -> Option<String> {
    let agent = headers.get(header::USER_AGENT)?;
    Some(match agent.to_str() {
        Ok(agent) => completion::cut(agent),
        Err(_) => completion::cut(&String::from_utf8_lossy(agent.as_bytes())),
    })
}

/// What the request is about, for its completion event.
fn note(completion: &mut Completion, wanted: &oci::Request) {
    completion.repository = wanted.repository().cloned();
    let of = |digest: &Digest| Some(Reference::Digest(*digest));
    (completion.kind, completion.reference) = match wanted {
        oci::Request::Ping => (RequestKind::Ping, None),
        oci::Request::Manifest { reference, .. } => {
            (RequestKind::Manifest, Some(reference.clone()))
        }
        oci::Request::Blob { digest, .. } => (RequestKind::Blob, of(digest)),
        oci::Request::Tags { .. } => (RequestKind::Tags, None),
        oci::Request::Referrers { digest, .. } => (RequestKind::Referrers, of(digest)),
        oci::Request::Uploads { digest, .. } | oci::Request::Upload { digest, .. } => {
            (RequestKind::Upload, digest.as_ref().and_then(of))
        }
        oci::Request::Catalog { .. } => (RequestKind::Catalog, None),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p05_a_name_is_ours_as_a_whole_whatever_its_case() {
        let domains = vec!["registry.example".to_owned()];
        let routes = Routes::new(domains, Vec::new(), Vec::new());
        for (host, is_ours) in [
            ("registry.example", true),
            ("Registry.Example", true),
            ("evil.registry.example", false),
            ("registry.example.evil", false),
            ("127.0.0.1", false),
        ] {
            let found = routes.domain(host);
            assert_eq!(found, is_ours.then_some("registry.example"), "{host}");
        }
        let answer = Refusal::Misdirected.answer();
        assert_eq!(answer.status, StatusCode::MISDIRECTED_REQUEST);
    }

    #[test]
    fn s06_every_verb_needs_a_right_of_its_own() {
        let of = |method: &str, path: &str| {
            let method: Method = method.parse().expect("a method");
            let wanted = oci::Request::parse(path, None).expect("a path");
            action(&method, &wanted).ok()
        };
        let manifest = "/v2/team/app/manifests/1";
        for (method, path, needed) in [
            ("GET", manifest, Some(Action::Pull)),
            ("HEAD", manifest, Some(Action::Pull)),
            ("GET", "/v2/team/app/tags/list", Some(Action::Pull)),
            ("PUT", manifest, Some(Action::Push)),
            ("DELETE", manifest, Some(Action::Delete)),
            ("POST", "/v2/team/app/blobs/uploads/", Some(Action::Push)),
            ("GET", "/v2/team/app/blobs/uploads/id", Some(Action::Push)),
            (
                "DELETE",
                "/v2/team/app/blobs/uploads/id",
                Some(Action::Push),
            ),
            ("BREW", manifest, None),
            ("get", manifest, None),
            ("OPTIONS", manifest, None),
        ] {
            assert_eq!(of(method, path), needed, "{method} {path}");
        }
    }
}
