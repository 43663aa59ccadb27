//! A faithful simulated ECR for the demo and the tests: the AWS JSON API, the registry and the S3
//! bucket behind it, each on a listener of its own.
//!
//! It imports nothing of the rest of the crate and does its own parsing, so that a mistake in the
//! proxy's vocabulary shows here instead of being shared. It is strict where ECR is strict, and it
//! departs from the OCI specification where ECR departs:
//!
//! - 401 is plain text under a Basic challenge, with an empty `Sizes:` header; a password that was
//!   never issued is 400, an expired one 403;
//! - HEAD of a manifest carries `Docker-Content-Digest`, GET does not, and neither has an `ETag`;
//! - GET of a blob is 307 to storage under a signed URL that names no digest and expires;
//! - storage refuses any `Authorization` with 400 and HEAD with 403, answers several ranges with
//!   the whole, and writes its errors in XML;
//! - tags are listed as `text/plain`, 100 a page, in no useful order, with an absolute `Link` whose
//!   `last` is opaque; more than 1000 at once is an error;
//! - PATCH of an upload is 201 and its `Range` sticks at the first chunk; `Location` is absolute;
//!   an empty blob is refused, nothing is mounted unless the account says so, an immutable tag is 400
//!   `TAG_INVALID`.
//!
//! Every request is in the [`Journal`]; what goes wrong is scripted by [`Faults`] and
//! [`Simulator::outage`]. A [`Gate`] lets a test arrange concurrency without waiting for time to
//! pass. The servers run on the runtime that started them and end with the last handle or at
//! [`Simulator::shutdown`].
//!
//! ```
//! use ecr_proxy::simulator::{Fault, ImageSpec, Listener, Pattern, Simulator};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let simulator = Simulator::builder().start().await?;
//! let image = simulator.push_image("app", "v1", ImageSpec::generated(1, [10 << 20]));
//! let layer = &image.manifests[0].layers[0].digest;
//! simulator
//!     .faults()
//!     .on(Listener::Storage, "GET", Pattern::digest(layer))
//!     .times(1)
//!     .then(Fault::ResetAfter(3 << 20));
//! // … pull it, then:
//! let journal = simulator.journal();
//! assert_eq!(journal.count(|e| e.digest.as_ref() == Some(layer)), 0);
//! # Ok(())
//! # }
//! ```
//!
//! It knows nothing of the proxy, checks no AWS signature, and keeps all it holds in memory.

mod api;
mod connection;
mod content;
mod fault;
mod image;
mod journal;
mod listener;
mod pace;
mod principal;
mod registry;
mod reply;
mod shelf;
mod storage;
mod sts;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

pub use self::content::{BlobSource, Generated};
pub use self::fault::{
    CannedAnswer, Fault, Faults, Gate, NewRule, Pattern, RuleHandle, path_contains,
};
pub use self::image::{
    FileContent, Flavour, ImageSpec, Layer, LayerFile, PushedImage, PushedManifest, Stored,
};
pub use self::journal::{End, Entry, Journal, Listener, TimedOut};
pub use self::listener::Outage;
pub use self::principal::{
    Action, DENIED_ACCESS_KEY, ExpiredForm, FULL_ACCESS_KEY, IssuedToken, PULL_ONLY_ACCESS_KEY,
    Principal, TokenReply,
};

use self::api::Api;
use self::connection::{Door, Service};
use self::listener::Port;
use self::principal::Credentials;
use self::registry::Registry;
use self::shelf::{Identity, Manifest, Shelf};
use self::storage::Storage;

/// Why a simulator did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listener could not be opened.
    #[error("cannot listen: {0}")]
    Listen(#[from] io::Error),
    /// The certificate or key cannot be used.
    #[error("cannot use the certificate: {0}")]
    Certificate(String),
}

/// How a simulator is to be; see [`Simulator::builder`].
#[must_use = "nothing runs until `start`"]
pub struct Builder {
    identity: Identity,
    addresses: [SocketAddr; 3],
    tls: Option<(Vec<u8>, Vec<u8>)>,
    api_has_tls: bool,
    storage_origin: Option<String>,
    principals: Vec<Principal>,
}

impl Builder {
    /// The account id, twelve digits.
    pub fn account(mut self, account: &str) -> Self {
        self.identity.account = account.into();
        self
    }

    /// The region.
    pub fn region(mut self, region: &str) -> Self {
        self.identity.region = region.into();
        self
    }

    /// Speaks as ECR Public does: Bearer tokens, for anybody or from an API of its own.
    pub fn public(mut self) -> Self {
        self.identity.is_public = true;
        self
    }

    /// Fixed addresses in place of ports chosen by the system on 127.0.0.1.
    pub fn bind(mut self, registry: SocketAddr, storage: SocketAddr, api: SocketAddr) -> Self {
        self.addresses[Listener::Registry.index()] = registry;
        self.addresses[Listener::Storage.index()] = storage;
        self.addresses[Listener::Api.index()] = api;
        self
    }

    /// TLS on registry and storage, from a PEM chain and key. The API stays plain without
    /// [`Builder::tls_api`].
    pub fn tls(mut self, chain: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        self.tls = Some((chain.into(), key.into()));
        self
    }

    /// TLS on the API too, where [`Builder::tls`] is set.
    pub fn tls_api(mut self) -> Self {
        self.api_has_tls = true;
        self
    }

    /// Scheme, host and port that redirects to storage lead to, in place of its own address.
    pub fn storage_origin(mut self, origin: &str) -> Self {
        self.storage_origin = Some(origin.into());
        self
    }

    /// One more principal beside the predefined ones.
    pub fn principal(mut self, principal: Principal) -> Self {
        self.principals.push(principal);
        self
    }

    /// Opens the three listeners on the current Tokio runtime.
    ///
    /// # Errors
    /// [`StartError`] where an address is taken or the certificate is bad.
    pub async fn start(self) -> Result<Simulator, StartError> {
        let tls = self.tls.map(|(chain, key)| tls_config(&chain, &key));
        let tls = tls.transpose()?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let mut principals = vec![
            Principal::full(FULL_ACCESS_KEY),
            Principal::pull_only(PULL_ONLY_ACCESS_KEY),
            Principal::denied(DENIED_ACCESS_KEY),
        ];
        principals.extend(self.principals);
        let credentials = Arc::new(Credentials::new(principals));
        let shelf = Arc::new(Shelf::new(self.identity));
        let journal = Journal::new();
        let faults = Faults::default();
        let open = |listener: Listener, service: Arc<dyn Service>, tls| {
            let door = Door {
                listener,
                service,
                journal: journal.clone(),
                faults: faults.clone(),
            };
            Port::open(self.addresses[listener.index()], door, tls)
        };
        let storage = Storage {
            shelf: shelf.clone(),
        };
        let storage = open(Listener::Storage, Arc::new(storage), tls.clone())?;
        let origin = self
            .storage_origin
            .unwrap_or_else(|| format!("{scheme}://{}", storage.address));
        let registry = Registry::new(shelf.clone(), credentials.clone(), origin);
        let registry = open(Listener::Registry, Arc::new(registry), tls.clone())?;
        let api = Api {
            shelf: shelf.clone(),
            credentials: credentials.clone(),
        };
        let api_tls = tls.filter(|_| self.api_has_tls);
        let api_scheme = if api_tls.is_some() { "https" } else { "http" };
        let api = open(Listener::Api, Arc::new(api), api_tls)?;
        Ok(Simulator {
            parts: Arc::new(Parts {
                shelf,
                credentials,
                journal,
                faults,
                scheme,
                api_scheme,
                ports: [api, registry, storage],
            }),
        })
    }
}

fn tls_config(chain: &[u8], key: &[u8]) -> Result<Arc<rustls::ServerConfig>, StartError> {
    let bad = |error: &dyn std::fmt::Display| StartError::Certificate(error.to_string());
    let chain = CertificateDer::pem_slice_iter(chain)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| bad(&e))?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| bad(&e))?;
    tls_config_of(chain, key).map_err(|e| bad(&e))
}

fn tls_config_of(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<rustls::ServerConfig>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// A handle on a running simulator; clones share it. Prints without its secrets.
#[derive(Clone)]
pub struct Simulator {
    parts: Arc<Parts>,
}

impl std::fmt::Debug for Simulator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Simulator")
            .field("identity", &self.parts.shelf.identity)
            .field("ports", &self.parts.ports)
            .finish_non_exhaustive()
    }
}

struct Parts {
    shelf: Arc<Shelf>,
    credentials: Arc<Credentials>,
    journal: Journal,
    faults: Faults,
    scheme: &'static str,
    api_scheme: &'static str,
    /// In the order of [`Listener::index`].
    ports: [Port; 3],
}

impl Simulator {
    /// Account 000042290000 in us-west-2, plain HTTP on free ports, unless told otherwise.
    pub fn builder() -> Builder {
        Builder {
            identity: Identity {
                account: "000042290000".into(),
                region: "us-west-2".into(),
                is_public: false,
            },
            addresses: [SocketAddr::from((Ipv4Addr::LOCALHOST, 0)); 3],
            tls: None,
            api_has_tls: false,
            storage_origin: None,
            principals: Vec::new(),
        }
    }

    /// `ACCOUNT.dkr.ecr.REGION.amazonaws.com`, the name that requests carry as `Host`.
    pub fn registry_host(&self) -> String {
        self.parts.shelf.identity.registry_host()
    }

    /// Where `listener` listens.
    pub fn address(&self, listener: Listener) -> SocketAddr {
        self.parts.ports[listener.index()].address
    }

    /// Scheme, address and port of the registry.
    pub fn endpoint(&self) -> String {
        format!(
            "{}://{}",
            self.parts.scheme,
            self.address(Listener::Registry)
        )
    }

    /// Scheme, address and port of the API, for `AWS_ENDPOINT_URL_ECR`.
    pub fn api_endpoint(&self) -> String {
        format!(
            "{}://{}",
            self.parts.api_scheme,
            self.address(Listener::Api)
        )
    }

    /// Scheme, address and port of storage.
    pub fn storage_endpoint(&self) -> String {
        format!(
            "{}://{}",
            self.parts.scheme,
            self.address(Listener::Storage)
        )
    }

    /// The record of requests.
    pub fn journal(&self) -> &Journal {
        &self.parts.journal
    }

    /// The script of faults.
    pub fn faults(&self) -> &Faults {
        &self.parts.faults
    }

    /// Makes a repository, if it is not there.
    pub fn create_repository(&self, name: &str) {
        self.parts.shelf.create(name);
    }

    /// Removes a repository with all it holds.
    pub fn delete_repository(&self, name: &str) {
        self.parts.shelf.remove(name);
    }

    /// The names of all repositories.
    pub fn repositories(&self) -> Vec<String> {
        self.parts.shelf.names()
    }

    /// Makes the tags of a repository immutable, or mutable again.
    pub fn set_immutable(&self, name: &str, immutable: bool) {
        self.parts.shelf.change(name, |r| r.immutable = immutable);
    }

    /// Tags like these are exceptions to whether the tags of a repository are immutable.
    pub fn set_exclusions(&self, name: &str, filters: &[&str]) {
        let filters = filters.iter().map(|filter| (*filter).to_owned()).collect();
        self.parts.shelf.change(name, |r| r.exclusions = filters);
    }

    /// What CreateRepository was asked with for a repository; null where it was made otherwise.
    pub fn made_with(&self, name: &str) -> Option<serde_json::Value> {
        self.parts.shelf.read(name, |r| r.made_with.clone())
    }

    /// Gives a repository a lifecycle policy, as an operator does.
    pub fn set_lifecycle_policy(&self, name: &str, policy: &str) {
        let policy = Some(policy.to_owned());
        self.parts
            .shelf
            .change(name, |r| r.lifecycle_policy = policy);
    }

    /// The lifecycle policy that a repository was given, as text.
    pub fn lifecycle_policy(&self, name: &str) -> Option<String> {
        let policy = |r: &shelf::Repository| r.lifecycle_policy.clone();
        self.parts.shelf.read(name, policy).flatten()
    }

    /// Builds an image and stores it under `tag`, making the repository if need be. Hashes
    /// everything on the calling thread.
    ///
    /// # Panics
    /// Where the path of a [`LayerFile`] is absolute or holds `..`.
    pub fn push_image(&self, repository: &str, tag: &str, spec: ImageSpec) -> PushedImage {
        self.create_repository(repository);
        image::store(&self.parts.shelf, repository, tag, &spec)
            .expect("an archive in memory fails only by its paths, as documented")
    }

    /// Stores a blob, making the repository if need be, and answers its digest. Hashes it on the
    /// calling thread.
    pub fn put_blob(&self, repository: &str, source: impl Into<BlobSource>) -> String {
        let source = source.into();
        let digest = source.digest();
        self.put_blob_as(repository, &digest, source);
        digest
    }

    /// Stores a blob under a digest that may not be its own.
    pub fn put_blob_as(&self, repository: &str, digest: &str, source: impl Into<BlobSource>) {
        self.create_repository(repository);
        let shelf = &self.parts.shelf;
        shelf.put_blob(repository, digest, source.into(), true);
    }

    /// Takes a blob out of a repository.
    pub fn delete_blob(&self, repository: &str, digest: &str) {
        let shelf = &self.parts.shelf;
        shelf.change(repository, |r| r.blobs.remove(digest));
    }

    /// Stores a manifest as it is, checking nothing, and answers its digest. A `reference` that is
    /// a tag is made to name it; an empty one leaves it untagged.
    pub fn put_manifest(
        &self,
        repository: &str,
        reference: &str,
        media_type: &str,
        bytes: impl Into<Bytes>,
    ) -> String {
        self.create_repository(repository);
        let bytes = bytes.into();
        let digest = BlobSource::Bytes(bytes.clone()).digest();
        let manifest = Manifest {
            media_type: media_type.into(),
            bytes,
        };
        let tag = Some(reference).filter(|r| !r.is_empty() && !r.contains(':'));
        let shelf = &self.parts.shelf;
        shelf.change(repository, |r| r.store(&digest, manifest, tag));
        digest
    }

    /// The media type and bytes of a stored manifest.
    pub fn manifest(&self, repository: &str, reference: &str) -> Option<(String, Bytes)> {
        let found = self.parts.shelf.read(repository, |r| {
            let (_, manifest) = r.manifest(reference)?;
            Some((manifest.media_type.clone(), manifest.bytes.clone()))
        });
        found.flatten()
    }

    /// The content of a stored blob.
    pub fn blob(&self, repository: &str, digest: &str) -> Option<BlobSource> {
        let blob = |r: &shelf::Repository| r.blobs.get(digest).map(|b| b.source.clone());
        self.parts.shelf.read(repository, blob).flatten()
    }

    /// Makes `tag` name `digest`.
    pub fn tag(&self, repository: &str, tag: &str, digest: &str) {
        let shelf = &self.parts.shelf;
        shelf.change(repository, |r| r.tags.insert(tag.into(), digest.into()));
    }

    /// Removes a tag, or a manifest by digest together with its tags.
    pub fn delete_manifest(&self, repository: &str, reference: &str) {
        self.parts.shelf.change(repository, |r| {
            r.tags
                .retain(|tag, digest| tag != reference && digest != reference);
            r.manifests.remove(reference);
        });
    }

    /// The path on storage at which a blob lies.
    pub fn storage_path(&self, repository: &str, digest: &str) -> String {
        self.parts.shelf.storage_path(repository, digest)
    }

    /// Adds a principal, or replaces the one with its access key id; tokens it already has carry
    /// the new rights.
    pub fn set_principal(&self, principal: Principal) {
        self.parts.credentials.add(principal);
    }

    /// A token as [`FULL_ACCESS_KEY`] or another principal would be given; `None` for an unknown
    /// access key id.
    pub fn token(&self, access_key_id: &str) -> Option<IssuedToken> {
        let credentials = &self.parts.credentials;
        let principal = credentials.principal(access_key_id)?;
        Some(credentials.issue(&principal))
    }

    /// Whoever shows `token` to STS may assume any role: `role/NAME` is the role of the principal
    /// `assumed-role/NAME/…`.
    pub fn trust_web_identity(&self, token: &str) {
        self.parts.credentials.trust_web_identity(token);
    }

    /// Lets the holder of `access_key_id` assume `role`, where it wants an external id only with that.
    pub fn trust_role(&self, role: &str, access_key_id: &str, external_id: Option<&str>) {
        self.parts
            .credentials
            .trust(role, access_key_id, external_id);
    }

    /// Ends the life of every token issued so far.
    pub fn expire_tokens(&self) {
        self.parts.credentials.expire_all();
    }

    /// How long tokens issued from now on live; 12 hours at first.
    pub fn set_token_life(&self, life: Duration) {
        self.parts.credentials.set_life(life);
    }

    /// What GetAuthorizationToken answers from now on.
    pub fn set_token_reply(&self, reply: TokenReply) {
        self.parts.credentials.set_reply(reply);
    }

    /// In which form an expired token is refused.
    pub fn set_expired_form(&self, form: ExpiredForm) {
        self.parts.credentials.set_expired_form(form);
    }

    /// Ends the life of every signed URL issued so far.
    pub fn expire_urls(&self) {
        self.parts.shelf.expire_urls();
    }

    /// How long URLs signed from now on live, in whole seconds; an hour at first.
    pub fn set_url_life(&self, life: Duration) {
        self.parts.shelf.set_url_life(life);
    }

    /// The account's setting `BLOB_MOUNTING`, which is off at first.
    pub fn set_blob_mounting(&self, is_on: bool) {
        self.parts.shelf.set_mounts_blobs(is_on);
    }

    /// Every token, password and URL signature handed out: what must appear nowhere else.
    pub fn secrets(&self) -> Vec<String> {
        let mut secrets = self.parts.credentials.secrets();
        secrets.extend(self.parts.shelf.signatures());
        secrets
    }

    /// Puts all three listeners out of order, or in order again, ending their connections. In
    /// force when this returns.
    pub async fn outage(&self, outage: Outage) {
        for listener in Listener::ALL {
            self.outage_of(listener, outage).await;
        }
    }

    /// As [`Simulator::outage`] for one listener.
    pub async fn outage_of(&self, listener: Listener, outage: Outage) {
        self.parts.ports[listener.index()].outage(outage).await;
    }

    /// Ends all connections and closes the ports; they are closed when this returns. What is
    /// stored stays readable through the handles.
    pub async fn shutdown(&self) {
        for port in &self.parts.ports {
            port.close().await;
        }
    }
}
