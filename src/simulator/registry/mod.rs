//! The registry API of ECR, `/v2/`, with ECR's own words, statuses and oddities.

mod list;
mod pull;
mod push;
mod route;

use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::connection::{Asked, Service};
use super::principal::{Action, Credentials, ExpiredForm, Principal, Verdict};
use super::reply::Reply;
use super::shelf::Shelf;
use push::Uploads;
use route::Route;

/// What the registry says of a token past its life.
const EXPIRED: &str = "Your authorization token has expired. Reauthenticate and try again.";

pub(super) struct Registry {
    shelf: Arc<Shelf>,
    credentials: Arc<Credentials>,
    uploads: Uploads,
    /// Scheme, host and port of storage, for redirects.
    storage_origin: String,
}

impl Registry {
    pub(super) fn new(
        shelf: Arc<Shelf>,
        credentials: Arc<Credentials>,
        storage_origin: String,
    ) -> Self {
        Self {
            shelf,
            credentials,
            uploads: Uploads::default(),
            storage_origin,
        }
    }
}

impl Service for Registry {
    fn subject(&self, path: &str) -> (Option<String>, Option<String>) {
        route::subject(path)
    }

    fn answer(&self, asked: Asked) -> BoxFuture<'_, Reply> {
        let reply = self
            .decide(&asked)
            .unwrap_or_else(|refusal| refusal)
            .with("docker-distribution-api-version", "registry/2.0");
        Box::pin(std::future::ready(reply))
    }

    fn expired(&self) -> Reply {
        match self.credentials.expired_form() {
            ExpiredForm::Json => Reply::error(403, "DENIED", EXPIRED),
            ExpiredForm::Text => Reply::text(403, EXPIRED),
        }
        .with("docker-distribution-api-version", "registry/2.0")
    }
}

impl Registry {
    fn decide(&self, asked: &Asked) -> Result<Reply, Reply> {
        let host = asked.header("host").unwrap_or_default();
        if host.contains(".amazonaws.com") && !self.is_own_host(host) {
            return Err(Reply::text(400, "Bad Request\n"));
        }
        let is_public = self.shelf.identity.is_public;
        if is_public && asked.path == "/token/" && asked.method == "GET" {
            let nobody = Principal::pull_only("");
            let issued = self.credentials.issue(&nobody);
            let answer = serde_json::json!({"token": issued.authorization_token});
            return Ok(Reply::json(200, &answer));
        }
        let caller = Caller {
            registry: self,
            principal: self.authenticate(asked, host)?,
        };
        let route = Route::parse(&asked.method, &asked.path).ok_or_else(no_page)?;
        match route {
            Route::Ping => Ok(Reply::json(200, &serde_json::json!({}))),
            Route::Catalog => list::catalog(&caller, asked),
            Route::Tags(name) => list::tags(&caller, name, asked),
            Route::Referrers(name, digest) => list::referrers(&caller, name, digest, asked),
            Route::Manifest(name, reference) => pull::manifest(&caller, name, reference, asked),
            Route::Blob(name, digest) => pull::blob(&caller, name, digest, asked),
            Route::PutManifest(name, reference) => push::manifest(&caller, name, reference, asked),
            Route::DeleteManifest(name, reference) => {
                push::delete_manifest(&caller, name, reference)
            }
            Route::StartUpload(name) => push::start(&caller, name, asked),
            Route::Upload(name, id) => push::upload(&caller, name, id, asked),
            Route::Unsupported => Err(Reply::error(
                405,
                "UNSUPPORTED",
                "The operation is unsupported.",
            )),
        }
    }

    fn is_own_host(&self, host: &str) -> bool {
        let name = host.split(':').next().unwrap_or_default();
        name.eq_ignore_ascii_case(&self.shelf.identity.registry_host())
    }

    fn authenticate(&self, asked: &Asked, host: &str) -> Result<Principal, Reply> {
        let is_public = self.shelf.identity.is_public;
        let wanted = if is_public { "bearer" } else { "basic" };
        let basic = asked.header("authorization").and_then(|value| {
            let (scheme, credential) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case(wanted).then_some(credential)
        });
        let Some(basic) = basic else {
            if is_public {
                let realm = self.absolute(asked, "/token/");
                let challenge =
                    format!("Bearer realm=\"{realm}\",service=\"public.ecr.aws\",scope=\"aws\"");
                let refusal = Reply::error(401, "UNAUTHORIZED", "Not Authorized");
                return Err(refusal.with("www-authenticate", &challenge));
            }
            let challenge =
                format!("Basic realm=\"https://{host}/\",service=\"ecr.amazonaws.com\"");
            return Err(Reply::text(401, "Not Authorized\n")
                .with("www-authenticate", &challenge)
                .with("sizes", ""));
        };
        match self.credentials.judge(basic) {
            Verdict::Good(principal) => Ok(principal),
            // Without a challenge: whoever waits for one waits for ever.
            Verdict::Expired if is_public => Err(Reply::text(400, "Bad Request\n")),
            Verdict::Expired => Err(self.expired()),
            Verdict::Malformed => Err(Reply::text(400, "Bad Request\n")),
        }
    }

    /// An absolute URL on the host asked: ECR never answers a relative one.
    fn absolute(&self, asked: &Asked, path: &str) -> String {
        let host = asked.header("host").unwrap_or_default();
        let scheme = if self.is_own_host(host) {
            "https"
        } else {
            asked.scheme
        };
        format!("{scheme}://{host}{path}")
    }
}

/// A request past authentication.
struct Caller<'a> {
    registry: &'a Registry,
    principal: Principal,
}

impl Caller<'_> {
    fn shelf(&self) -> &Shelf {
        &self.registry.shelf
    }

    /// Checks the right, then that the repository exists, in ECR's order.
    fn enter(&self, name: &str, action: Action) -> Result<(), Reply> {
        self.demand(action, Some(name))?;
        match self.shelf().read(name, |_| ()) {
            Some(()) => Ok(()),
            None => Err(self.name_unknown(name)),
        }
    }

    fn demand(&self, action: Action, name: Option<&str>) -> Result<(), Reply> {
        if self.principal.may(action, name) {
            return Ok(());
        }
        let identity = &self.shelf().identity;
        let user = identity.principal_arn(&self.principal.name);
        let resource = identity.repository_arn(name.unwrap_or("*"));
        Err(Reply::error(
            403,
            "DENIED",
            format!(
                "User: {user} is not authorized to perform: ecr:{action:?} on resource: \
                 {resource} because no identity-based policy allows the ecr:{action:?} action"
            ),
        ))
    }

    fn name_unknown(&self, name: &str) -> Reply {
        let account = &self.shelf().identity.account;
        Reply::error(
            404,
            "NAME_UNKNOWN",
            format!(
                "The repository with name '{name}' does not exist in the registry with id \
                 '{account}'"
            ),
        )
    }
}

fn no_page() -> Reply {
    Reply::text(404, "404 page not found\n")
}

fn manifest_unknown() -> Reply {
    Reply::error(404, "MANIFEST_UNKNOWN", "Requested image not found")
}
