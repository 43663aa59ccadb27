//! Steps of the specification, and what is kept of the answers to them.

use super::differences::Said;
use super::support::push::{APP, MANIFEST, send};
use super::support::{Answer, Client};

/// Takes the steps, and keeps what is said to each.
pub struct Script {
    /// Who asks.
    pub client: Client,
    /// What was said to each step, in order.
    pub said: Vec<(&'static str, Said)>,
    /// Statuses that the specification does not have for a step.
    pub outside: Vec<(&'static str, u16)>,
}

impl Script {
    /// None taken yet.
    pub fn new(client: Client) -> Self {
        Self {
            client,
            said: Vec::new(),
            outside: Vec::new(),
        }
    }

    /// A request without a body, `line` being its method and target, and the statuses that the specification
    /// has for it.
    pub async fn ask(&mut self, name: &'static str, allowed: &[u16], line: &str) -> Answer {
        let (method, target) = line.split_once(' ').expect("a method and a target");
        let accept = [("accept", MANIFEST)];
        let answer = self.client.ask(method, target, &accept).await;
        self.keep(name, allowed, method, answer)
    }

    /// The same with a body of this type, and of these bytes of the whole where it is a part.
    pub async fn send(
        &mut self,
        name: &'static str,
        allowed: &[u16],
        line: &str,
        (media_type, range): (&str, Option<&str>),
        body: &[u8],
    ) -> Answer {
        let (method, target) = line.split_once(' ').expect("a method and a target");
        let mut headers = vec![("content-type", media_type)];
        headers.extend(range.map(|range| ("content-range", range)));
        let answer = send(&self.client, method, target, &headers, body, false).await;
        self.keep(name, allowed, method, answer)
    }

    fn keep(
        &mut self,
        name: &'static str,
        allowed: &[u16],
        method: &str,
        answer: Answer,
    ) -> Answer {
        assert!(answer.clean_end, "{name}");
        if !allowed.contains(&answer.status) {
            self.outside.push((name, answer.status));
        }
        self.said.push((name, said(method, &answer)));
        answer
    }

    /// Begins an upload; where it goes on.
    pub async fn begin(&mut self, name: &'static str) -> String {
        let line = format!("POST /v2/{APP}/blobs/uploads/");
        let answer = self.send(name, &[202], &line, BLOB, b"").await;
        place(&answer).expect("where it goes on")
    }

    /// PUT of a manifest by a tag or digest.
    pub async fn put_manifest(
        &mut self,
        name: &'static str,
        allowed: &[u16],
        as_: &str,
        text: &str,
    ) {
        let line = format!("PUT /v2/{APP}/manifests/{as_}");
        let kind = (MANIFEST, None);
        self.send(name, allowed, &line, kind, text.as_bytes()).await;
    }
}

/// A whole blob, or its last part.
pub const BLOB: (&str, Option<&str>) = ("application/octet-stream", None);

/// A part of a blob.
pub fn part(range: &str) -> (&str, Option<&str>) {
    (BLOB.0, Some(range))
}

/// Where an answer leads, without the host; if it does.
pub fn place(answer: &Answer) -> Option<String> {
    let place = answer.header("location")?;
    Some(place[place.find("/v2/")?..].to_owned())
}

/// A place with one more parameter.
pub fn joined(place: &str, parameter: &str) -> String {
    let joint = if place.contains('?') { '&' } else { '?' };
    format!("{place}{joint}{parameter}")
}

fn said(method: &str, answer: &Answer) -> Said {
    let mut said = Said::from([("status", answer.status.to_string())]);
    if answer.status >= 400 {
        // How an error is worded is anybody's own.
        if method != "HEAD" && !answer.body.is_empty() {
            let json = serde_json::from_slice::<serde_json::Value>(&answer.body);
            let code = json
                .ok()
                .and_then(|json| Some(json["errors"][0]["code"].as_str()?.to_owned()));
            said.insert("code", code.unwrap_or("none".to_owned()));
        }
        said.extend(
            answer
                .header("range")
                .map(|range| ("Range", range.to_owned())),
        );
        return said;
    }
    for (name, header) in [
        ("Docker-Content-Digest", "docker-content-digest"),
        ("Range", "range"),
        ("OCI-Subject", "oci-subject"),
        ("OCI-Filters-Applied", "oci-filters-applied"),
    ] {
        said.extend(answer.header(header).map(|value| (name, value.to_owned())));
    }
    if let Some(location) = answer.header("location") {
        let path = &location[location.find("/v2/").unwrap_or(0)..];
        let kept = match path.contains("/blobs/uploads/") {
            // What comes behind is the registry's own.
            true => &path[..path.find("uploads/").unwrap_or(0) + "uploads/".len()],
            false => path,
        };
        said.insert("Location", kept.to_owned());
    }
    if answer.header("link").is_some() {
        said.insert("Link", "next".to_owned());
    }
    let media_type = answer.header("content-type").unwrap_or_default();
    if !answer.body.is_empty() {
        said.insert(
            "Content-Type",
            media_type.split(';').next().unwrap_or_default().to_owned(),
        );
    }
    if method == "HEAD" {
        said.extend(
            answer
                .header("content-length")
                .map(|length| ("Content-Length", length.to_owned())),
        );
    }
    let json = serde_json::from_slice::<serde_json::Value>(&answer.body).ok();
    match json {
        Some(json)
            if json["tags"].is_array() || json["tags"].is_null() && json["name"].is_string() =>
        {
            said.insert("body", format!("tags {}", json["tags"]));
        }
        Some(json) if json["manifests"].is_array() => {
            let all = json["manifests"].as_array().expect("just looked");
            let digests: Vec<String> = all
                .iter()
                .map(|one| format!("{} {}", one["digest"], one["artifactType"]))
                .collect();
            said.insert("body", digests.join(", "));
        }
        _ if !answer.body.is_empty() => {
            said.insert("body", answer.digest());
        }
        _ => {}
    }
    said
}
