//! What the account's registry holds: repositories with their blobs, manifests and tags, and the
//! signed URLs by which blobs may be fetched from storage.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde_json::Value;

use super::content::{BlobSource, sha256_hex};
use super::principal::epoch;

/// Who and where the simulated registry is.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    pub(super) account: String,
    pub(super) region: String,
    /// It speaks as ECR Public does.
    pub(super) is_public: bool,
}

impl Identity {
    pub(super) fn registry_host(&self) -> String {
        if self.is_public {
            return "public.ecr.aws".to_owned();
        }
        format!("{}.dkr.ecr.{}.amazonaws.com", self.account, self.region)
    }

    pub(super) fn repository_arn(&self, name: &str) -> String {
        let Self {
            account, region, ..
        } = self;
        format!("arn:aws:ecr:{region}:{account}:repository/{name}")
    }

    pub(super) fn principal_arn(&self, name: &str) -> String {
        format!("arn:aws:sts::{}:{name}", self.account)
    }
}

/// A manifest as stored.
#[derive(Clone, Debug)]
pub(super) struct Manifest {
    pub(super) media_type: String,
    pub(super) bytes: Bytes,
}

impl Manifest {
    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_default()
    }
}

#[derive(Clone, Debug)]
pub(super) struct Blob {
    pub(super) source: BlobSource,
    /// ECR hands out no URL for a layer that no image names.
    pub(super) referenced: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Repository {
    pub(super) immutable: bool,
    /// Tags like these are of the other kind.
    pub(super) exclusions: Vec<String>,
    pub(super) created: SystemTime,
    pub(super) blobs: BTreeMap<String, Blob>,
    pub(super) manifests: BTreeMap<String, Manifest>,
    pub(super) tags: BTreeMap<String, String>,
    pub(super) lifecycle_policy: Option<String>,
    /// What CreateRepository was asked with; null where it was not.
    pub(super) made_with: Value,
}

/// Whether `*` in `filter` can stand for something that makes it `text`.
fn like(filter: &str, text: &str) -> bool {
    match filter.split_once('*') {
        None => filter == text,
        Some((start, rest)) => text.strip_prefix(start).is_some_and(|text| {
            let mut tails = text.char_indices().map(|(at, _)| &text[at..]);
            tails.any(|tail| like(rest, tail)) || like(rest, "")
        }),
    }
}

impl Repository {
    fn new() -> Self {
        Self {
            immutable: false,
            exclusions: Vec::new(),
            created: SystemTime::now(),
            blobs: BTreeMap::new(),
            manifests: BTreeMap::new(),
            tags: BTreeMap::new(),
            lifecycle_policy: None,
            made_with: Value::Null,
        }
    }

    /// Whether `tag` may name something else one day.
    pub(super) fn is_immutable(&self, tag: &str) -> bool {
        self.immutable != self.exclusions.iter().any(|filter| like(filter, tag))
    }

    /// The digest and manifest that a tag or digest names.
    pub(super) fn manifest(&self, reference: &str) -> Option<(&String, &Manifest)> {
        let digest = self.tags.get(reference).map_or(reference, String::as_str);
        self.manifests.get_key_value(digest)
    }

    /// Stores a manifest, under `tag` too where given, and counts its blobs as referenced.
    pub(super) fn store(&mut self, digest: &str, manifest: Manifest, tag: Option<&str>) {
        for named in blob_digests(&manifest.json()) {
            if let Some(blob) = self.blobs.get_mut(&named) {
                blob.referenced = true;
            }
        }
        self.manifests.insert(digest.into(), manifest);
        if let Some(tag) = tag {
            self.tags.insert(tag.into(), digest.into());
        }
    }
}

/// The digests of the config and layers that `manifest` names.
pub(super) fn blob_digests(manifest: &Value) -> Vec<String> {
    let layers = manifest["layers"].as_array().into_iter().flatten();
    std::iter::once(&manifest["config"])
        .chain(layers)
        .filter_map(|descriptor| descriptor["digest"].as_str())
        .map(str::to_owned)
        .collect()
}

/// A blob as storage knows it.
#[derive(Clone, Debug)]
pub(super) struct Object {
    pub(super) repository: String,
    pub(super) digest: String,
    pub(super) source: BlobSource,
}

struct SignedUrl {
    path: String,
    expires_at: SystemTime,
}

/// What storage thinks of a signed URL.
pub(super) enum Admission {
    Granted(Object),
    Expired,
    BadSignature,
}

/// Everything stored; all access goes through one lock, held only briefly.
pub(super) struct Shelf {
    pub(super) identity: Identity,
    state: Mutex<State>,
}

struct State {
    repositories: BTreeMap<String, Repository>,
    objects: HashMap<String, Object>,
    signatures: HashMap<String, SignedUrl>,
    signed: u64,
    url_life: Duration,
    /// The account's setting `BLOB_MOUNTING`.
    mounts_blobs: bool,
}

impl Shelf {
    pub(super) fn new(identity: Identity) -> Self {
        Self {
            identity,
            state: Mutex::new(State {
                repositories: BTreeMap::new(),
                objects: HashMap::new(),
                signatures: HashMap::new(),
                signed: 0,
                url_life: Duration::from_secs(3600),
                mounts_blobs: false,
            }),
        }
    }

    /// False where it was there.
    pub(super) fn create(&self, name: &str) -> bool {
        let mut state = self.state();
        let new = !state.repositories.contains_key(name);
        state
            .repositories
            .entry(name.into())
            .or_insert_with(Repository::new);
        new
    }

    pub(super) fn remove(&self, name: &str) {
        self.state().repositories.remove(name);
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.state().repositories.keys().cloned().collect()
    }

    /// Looks at a repository; `None` where there is none.
    pub(super) fn read<T>(&self, name: &str, look: impl FnOnce(&Repository) -> T) -> Option<T> {
        self.state().repositories.get(name).map(look)
    }

    /// Changes a repository; `None` where there is none.
    pub(super) fn change<T>(
        &self,
        name: &str,
        change: impl FnOnce(&mut Repository) -> T,
    ) -> Option<T> {
        self.state().repositories.get_mut(name).map(change)
    }

    /// Stores a blob in a repository that exists.
    pub(super) fn put_blob(&self, name: &str, digest: &str, source: BlobSource, referenced: bool) {
        let path = self.storage_path(name, digest);
        let mut state = self.state();
        let Some(repository) = state.repositories.get_mut(name) else {
            return;
        };
        let blob = repository.blobs.entry(digest.into()).or_insert(Blob {
            source: source.clone(),
            referenced,
        });
        blob.source = source.clone();
        blob.referenced |= referenced;
        let object = Object {
            repository: name.into(),
            digest: digest.into(),
            source,
        };
        state.objects.insert(path, object);
    }

    /// Where storage keeps a blob: a path that names neither repository nor digest.
    pub(super) fn storage_path(&self, name: &str, digest: &str) -> String {
        let account = &self.identity.account;
        let id = sha256_hex(&[b"object", name.as_bytes(), b"\0", digest.as_bytes()]);
        format!(
            "/{}-{account}-{}/{}",
            &id[..4],
            uuid(&id[4..36]),
            uuid(&id[32..64])
        )
    }

    pub(super) fn object(&self, path: &str) -> Option<Object> {
        self.state().objects.get(path).cloned()
    }

    /// The path and query of a fresh signed URL for GET.
    pub(super) fn sign(&self, name: &str, digest: &str) -> String {
        let path = self.storage_path(name, digest);
        let region = &self.identity.region;
        let mut state = self.state();
        let now = SystemTime::now();
        state.signed += 1;
        let nanos = epoch(now).as_nanos().to_le_bytes();
        let counter = state.signed.to_le_bytes();
        let signature = sha256_hex(&[b"signature", path.as_bytes(), &nanos, &counter]);
        let life = state.url_life;
        let url = SignedUrl {
            path: path.clone(),
            expires_at: now + life,
        };
        state.signatures.insert(signature.clone(), url);
        let date = amz_date(now);
        let day = &date[..8];
        format!(
            "{path}?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Date={date}&X-Amz-SignedHeaders=host\
             &X-Amz-Expires={}&X-Amz-Credential=AKIASIMULATEDSTORAGE%2F{day}%2F{region}%2Fs3\
             %2Faws4_request&X-Amz-Signature={signature}",
            life.as_secs()
        )
    }

    pub(super) fn admit(&self, path: &str, signature: &str) -> Admission {
        let state = self.state();
        match (state.signatures.get(signature), state.objects.get(path)) {
            (Some(url), Some(object)) if url.path == path => {
                if url.expires_at <= SystemTime::now() {
                    Admission::Expired
                } else {
                    Admission::Granted(object.clone())
                }
            }
            _ => Admission::BadSignature,
        }
    }

    pub(super) fn expire_urls(&self) {
        for url in self.state().signatures.values_mut() {
            url.expires_at = UNIX_EPOCH;
        }
    }

    pub(super) fn set_url_life(&self, life: Duration) {
        self.state().url_life = life;
    }

    pub(super) fn set_mounts_blobs(&self, mounts: bool) {
        self.state().mounts_blobs = mounts;
    }

    pub(super) fn mounts_blobs(&self) -> bool {
        self.state().mounts_blobs
    }

    pub(super) fn signatures(&self) -> Vec<String> {
        self.state().signatures.keys().cloned().collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Groups 32 hex digits as a UUID.
pub(super) fn uuid(hex: &str) -> String {
    let [a, b, c, d, e] = [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..32],
    ];
    format!("{a}-{b}-{c}-{d}-{e}")
}

/// `20260131T235959Z`.
fn amz_date(now: SystemTime) -> String {
    let now = time::OffsetDateTime::from(now);
    format!(
        "{:04}{:02}{:02}T{:02}{:02}{:02}Z",
        now.year(),
        u8::from(now.month()),
        now.day(),
        now.hour(),
        now.minute(),
        now.second()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shelf() -> Shelf {
        let shelf = Shelf::new(Identity {
            account: "000042290000".into(),
            region: "us-west-2".into(),
            is_public: false,
        });
        shelf.create("app");
        shelf.put_blob("app", "sha256:ab", "abc".into(), true);
        shelf
    }

    fn signature(url: &str) -> &str {
        url.rsplit_once("X-Amz-Signature=").unwrap().1
    }

    #[test]
    fn a_signed_url_names_no_digest_and_opens_one_object() {
        let shelf = shelf();
        let url = shelf.sign("app", "sha256:ab");
        let (path, query) = url.split_once('?').unwrap();
        assert!(!path.contains("ab:") && query.contains("X-Amz-Expires=3600"));
        assert!(matches!(
            shelf.admit(path, signature(&url)),
            Admission::Granted(_)
        ));
        assert!(matches!(
            shelf.admit("/other", signature(&url)),
            Admission::BadSignature
        ));
        shelf.expire_urls();
        assert!(matches!(
            shelf.admit(path, signature(&url)),
            Admission::Expired
        ));
    }

    #[test]
    fn dates_are_written_as_aws_signs_them() {
        assert_eq!(
            amz_date(UNIX_EPOCH + Duration::from_secs(1_700_000_000)),
            "20231114T221320Z"
        );
    }
}
