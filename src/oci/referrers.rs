//! Lists of the manifests that refer to another (distribution-spec "Listing Referrers").
//!
//! Entries are kept as the JSON they are: a registry may say more of a referrer than we know of.

use std::collections::HashSet;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::digest::Digest;
use super::manifest::media_type;

/// A list of referrers, each digest once.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Referrers {
    entries: Vec<(Digest, Map<String, Value>)>,
    known: HashSet<Digest>,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Value>,
}

/// What of a manifest stands in the list.
#[derive(Deserialize)]
struct Referring {
    #[serde(rename = "artifactType")]
    artifact_type: Option<String>,
    config: Option<Config>,
    annotations: Option<Map<String, Value>>,
}

#[derive(Deserialize)]
struct Config {
    #[serde(rename = "mediaType")]
    media_type: String,
}

impl Referrers {
    /// Reads an image index: a page of a list, or what a fallback tag names. Entries whose digest we do
    /// not serve are left out.
    ///
    /// # Errors
    /// When it is no image index.
    pub fn from_index(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        let index: Index = serde_json::from_slice(bytes)?;
        Ok(Self::of(index.manifests))
    }

    /// Reads what [`Self::to_array`] wrote.
    ///
    /// # Errors
    /// When it is no JSON array.
    pub fn from_array(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes).map(Self::of)
    }

    fn of(values: Vec<Value>) -> Self {
        let mut this = Self::default();
        for value in values {
            if let Value::Object(entry) = value {
                this.push(entry);
            }
        }
        this
    }

    fn push(&mut self, entry: Map<String, Value>) {
        let digest = entry.get("digest").and_then(Value::as_str);
        if let Some(Ok(digest)) = digest.map(str::parse::<Digest>)
            && self.known.insert(digest)
        {
            self.entries.push((digest, entry));
        }
    }

    /// Adds what `other` has beyond this.
    pub fn extend(&mut self, other: Self) {
        for (_, entry) in other.entries {
            self.push(entry);
        }
    }

    /// Adds a manifest that refers to the subject, as a registry would list it: its annotations copied,
    /// and its config's type in place of an artifact type that it does not have. One that cannot be read
    /// is left out.
    pub fn add_manifest(&mut self, digest: Digest, content_type: &str, bytes: &[u8]) {
        let Ok(referring) = serde_json::from_slice::<Referring>(bytes) else {
            return;
        };
        let own = referring.artifact_type.filter(|own| !own.is_empty());
        let artifact_type = own.or(referring.config.map(|config| config.media_type));
        let mut entry = Map::new();
        entry.insert("mediaType".to_owned(), json!(content_type));
        entry.insert("digest".to_owned(), json!(digest.to_string()));
        entry.insert("size".to_owned(), json!(bytes.len()));
        if let Some(artifact_type) = artifact_type {
            entry.insert("artifactType".to_owned(), json!(artifact_type));
        }
        if let Some(annotations) = referring.annotations {
            entry.insert("annotations".to_owned(), Value::Object(annotations));
        }
        self.push(entry);
    }

    /// What the list names, in its order.
    pub fn digests(&self) -> impl Iterator<Item = Digest> {
        self.entries.iter().map(|(digest, _)| *digest)
    }

    /// Only those of one artifact type.
    #[must_use]
    pub fn of_type(self, artifact_type: &str) -> Self {
        let is_wanted = |entry: &Map<String, Value>| {
            entry.get("artifactType").and_then(Value::as_str) == Some(artifact_type)
        };
        let mut wanted = Self::default();
        for (_, entry) in self.entries {
            if is_wanted(&entry) {
                wanted.push(entry);
            }
        }
        wanted
    }

    /// The list as an image index: what a registry answers.
    pub fn to_index(&self) -> String {
        json!({
            "schemaVersion": 2,
            "mediaType": media_type::OCI_INDEX,
            "manifests": self.values().collect::<Vec<_>>(),
        })
        .to_string()
    }

    /// The entries alone.
    pub fn to_array(&self) -> String {
        json!(self.values().collect::<Vec<_>>()).to_string()
    }

    fn values(&self) -> impl Iterator<Item = &Map<String, Value>> {
        self.entries.iter().map(|(_, entry)| entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_manifest_is_listed_as_the_specification_says() {
        let mut referrers = Referrers::default();
        for (text, expected) in [
            (
                r#"{"artifactType":"a/b","config":{"mediaType":"c/d"}}"#,
                Some("a/b"),
            ),
            (
                r#"{"artifactType":"","config":{"mediaType":"c/d"}}"#,
                Some("c/d"),
            ),
            (r#"{"config":{"mediaType":"c/d"}}"#, Some("c/d")),
            (r#"{"manifests":[]}"#, None),
        ] {
            let digest = Digest::of(text.as_bytes());
            referrers.add_manifest(digest, media_type::OCI_MANIFEST, text.as_bytes());
            let (_, last) = referrers.entries.last().unwrap();
            let found = last.get("artifactType").and_then(Value::as_str);
            assert_eq!(found, expected, "{text}");
        }
        assert_eq!(referrers.clone().of_type("c/d").digests().count(), 2);
        let annotated = r#"{"annotations":{"k":"v"},"config":{"mediaType":"c/d"}}"#;
        let digest = Digest::of(annotated.as_bytes());
        referrers.add_manifest(digest, "x/y", annotated.as_bytes());
        referrers.add_manifest(digest, "x/y", annotated.as_bytes());
        referrers.add_manifest(Digest::of(b""), "x/y", b"<html>");
        assert_eq!(referrers.digests().count(), 5, "each digest once");
        let index: Value = serde_json::from_str(&referrers.to_index()).unwrap();
        assert_eq!(index["mediaType"], media_type::OCI_INDEX);
        let last = &index["manifests"][4];
        assert_eq!(last["annotations"]["k"], "v");
        assert_eq!(last["size"], annotated.len());
        assert_eq!(last["digest"], digest.to_string());
    }

    #[test]
    fn lists_are_merged_and_keep_what_we_do_not_know() {
        let entry = |n: u8| format!(r#"{{"digest":"{}","x":[{n}]}}"#, Digest::of(&[n]));
        let index = format!(
            r#"{{"manifests":[{},{},{{"digest":"sha512:0"}},7]}}"#,
            entry(1),
            entry(2)
        );
        let mut first = Referrers::from_index(index.as_bytes()).unwrap();
        let second = format!("[{},{}]", entry(2), entry(3));
        first.extend(Referrers::from_array(second.as_bytes()).unwrap());
        let expected = format!("[{},{},{}]", entry(1), entry(2), entry(3));
        assert_eq!(first.to_array(), expected);
        let back = Referrers::from_array(first.to_array().as_bytes()).unwrap();
        assert_eq!(back, first);
        assert!(Referrers::from_index(b"[]").is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = Referrers::from_index(&bytes);
            let _ = Referrers::from_array(&bytes);
            Referrers::default().add_manifest(Digest::of(b""), "x/y", &bytes);
        }
    }
}
