//! Tags, catalog and referrers: pages as ECR cuts them, in no useful order.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::super::connection::Asked;
use super::super::content::sha256_hex;
use super::super::principal::Action;
use super::super::reply::Reply;
use super::Caller;

const DEFAULT_PAGE: usize = 100;
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";

pub(super) fn tags(caller: &Caller<'_>, name: &str, asked: &Asked) -> Result<Reply, Reply> {
    caller.enter(name, Action::ListImages)?;
    let tags = caller
        .shelf()
        .read(name, |r| r.tags.keys().cloned().collect::<Vec<_>>())
        .ok_or_else(|| caller.name_unknown(name))?;
    let (page, next) = page(tags, asked)?;
    let path = format!("/v2/{name}/tags/list");
    let reply = listing(&json!({"name": name, "tags": page}));
    Ok(linked(reply, caller, asked, &path, next))
}

pub(super) fn catalog(caller: &Caller<'_>, asked: &Asked) -> Result<Reply, Reply> {
    caller.demand(Action::DescribeRepositories, None)?;
    let (page, next) = page(caller.shelf().names(), asked)?;
    let reply = listing(&json!({"repositories": page}));
    Ok(linked(reply, caller, asked, "/v2/_catalog", next))
}

pub(super) fn referrers(
    caller: &Caller<'_>,
    name: &str,
    digest: &str,
    asked: &Asked,
) -> Result<Reply, Reply> {
    caller.enter(name, Action::BatchGetImage)?;
    let wanted = parameter(&asked.query, "artifactType");
    let found = caller.shelf().read(name, |repository| {
        let manifests = repository.manifests.iter();
        let referring = manifests.filter_map(|(own, manifest)| {
            let json = manifest.json();
            if json["subject"]["digest"] != digest {
                return None;
            }
            let artifact_type = json["artifactType"]
                .as_str()
                .or(json["config"]["mediaType"].as_str())
                .unwrap_or_default();
            if wanted.as_deref().is_some_and(|w| w != artifact_type) {
                return None;
            }
            let mut descriptor = json!({
                "mediaType": manifest.media_type,
                "digest": own,
                "size": manifest.bytes.len(),
                "artifactType": artifact_type,
            });
            if json["annotations"].is_object() {
                descriptor["annotations"] = json["annotations"].clone();
            }
            Some(descriptor)
        });
        referring.collect::<Vec<Value>>()
    });
    let index = json!({
        "schemaVersion": 2,
        "mediaType": INDEX_TYPE,
        "manifests": found.ok_or_else(|| caller.name_unknown(name))?,
    });
    let mut reply = Reply::json(200, &index).with("content-type", INDEX_TYPE);
    if wanted.is_some() {
        reply.set("oci-filters-applied", "artifactType");
    }
    Ok(reply)
}

/// JSON under the type that ECR gives it.
fn listing(body: &Value) -> Reply {
    Reply::json(200, body).with("content-type", "text/plain; charset=utf-8")
}

fn linked(
    reply: Reply,
    caller: &Caller<'_>,
    asked: &Asked,
    path: &str,
    next: Option<String>,
) -> Reply {
    let Some(token) = next else {
        return reply;
    };
    let count = parameter(&asked.query, "n").map_or(String::new(), |n| format!("&n={n}"));
    let path = format!("{path}?last={token}{count}");
    let url = caller.registry.absolute(asked, &path);
    reply.with("link", &format!("<{url}>; rel=\"next\""))
}

/// One page of `names` and the token of the next.
fn page(mut names: Vec<String>, asked: &Asked) -> Result<(Vec<String>, Option<String>), Reply> {
    let count = match parameter(&asked.query, "n") {
        None => DEFAULT_PAGE,
        Some(n) => match n.parse::<i64>() {
            Ok(n @ 1..=1000) => usize::try_from(n).unwrap_or(DEFAULT_PAGE),
            Ok(n) if n > 1000 => {
                return Err(constraint(
                    "maxResults",
                    "Member must have value less than or equal to 1000",
                ));
            }
            Ok(_) => {
                return Err(constraint(
                    "maxResults",
                    "Member must have value greater than or equal to 1",
                ));
            }
            Err(_) => return Err(constraint("maxResults", "Member must be a number")),
        },
    };
    let order = |name: &String| sha256_hex(&[b"order", name.as_bytes()]);
    names.sort_by_cached_key(order);
    let start = match parameter(&asked.query, "last") {
        None => 0,
        // A tag name is no token.
        Some(token) => {
            let after = place(&token).ok_or_else(|| constraint("nextToken", "Invalid token"))?;
            names.partition_point(|name| order(name) <= after)
        }
    };
    let page: Vec<String> = names.iter().skip(start).take(count).cloned().collect();
    let more = start + page.len() < names.len();
    let next = page.last().filter(|_| more).map(|last| token(&order(last)));
    Ok((page, next))
}

const TOKEN_HEAD: &str = "{\"nextToken\":\"AAMAopaqueopaqueopaqueopaqueopaqueopaque";

fn token(place: &str) -> String {
    URL_SAFE_NO_PAD.encode(format!("{TOKEN_HEAD}{place}"))
}

fn place(token: &str) -> Option<String> {
    let decoded = String::from_utf8(URL_SAFE_NO_PAD.decode(token).ok()?).ok()?;
    decoded.strip_prefix(TOKEN_HEAD).map(str::to_owned)
}

fn constraint(parameter: &str, what: &str) -> Reply {
    Reply::error(
        405,
        "UNSUPPORTED",
        format!("Invalid parameter at '{parameter}' failed to satisfy constraint: '{what}'"),
    )
}

/// The first value of `name` in a query, decoded.
pub(super) fn parameter(query: &str, name: &str) -> Option<String> {
    let mut pairs = url::form_urlencoded::parse(query.as_bytes());
    pairs
        .find(|(key, _)| key == name)
        .map(|(_, value)| value.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_token_is_long_opaque_and_not_a_tag() {
        let token = token("00ff");
        assert!(token.len() > 60);
        assert_eq!(place(&token).as_deref(), Some("00ff"));
        assert_eq!(place("v1"), None);
    }
}
