//! Networks that want a login answer in everybody's place: with a page for people, or by sending to one.
//! That is nobody's word about content, neither what is there nor that there is none.

use http::{HeaderMap, StatusCode, header};

use super::registry::{Registry, RegistryKind};
use super::said::{is_failure, is_redirect};

/// Whether this is a page for people. No registry sends content as one.
pub(super) fn is_page(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|media_type| media_type.as_bytes().starts_with(b"text/html"))
}

/// Whether an answer is another's than the registry's. One that throttles, fails or wants credentials is
/// taken as such, whoever sends it; where a redirect leads is judged when it is followed.
pub(super) fn stands_in(registry: &Registry, status: StatusCode, headers: &HeaderMap) -> bool {
    if status == StatusCode::NETWORK_AUTHENTICATION_REQUIRED {
        return true;
    }
    let has_a_meaning = is_redirect(status)
        || is_failure(status)
        || matches!(
            status,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::UNAUTHORIZED
        );
    is_page(headers) && !has_a_meaning && (status.is_success() || !may_err_in_pages(registry))
}

/// Whether an answer to a question for nothing in particular, without credentials, is another's.
/// `is_sent_away` tells of a redirect to where the registry would not send anybody.
pub(super) fn stands_at_the_door(
    registry: &Registry,
    status: StatusCode,
    headers: &HeaderMap,
    is_sent_away: bool,
) -> bool {
    // What a small registry has at its door may be anything.
    let is_known = !may_err_in_pages(registry);
    is_known && (is_sent_away || stands_in(registry, status, headers))
}

/// A web server in front of a small registry tells its errors in pages of its own; AWS and Docker do not.
fn may_err_in_pages(registry: &Registry) -> bool {
    match registry.kind() {
        RegistryKind::Ecr(_) | RegistryKind::EcrPublic | RegistryKind::DockerHub => false,
        RegistryKind::Other => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ECR: &str = "000042290000.dkr.ecr.us-west-2.amazonaws.com";

    fn judge(registry: &str, status: u16, media_type: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, media_type.parse().unwrap());
        let status = StatusCode::from_u16(status).unwrap();
        stands_in(&Registry::parse(registry).unwrap(), status, &headers)
    }

    #[test]
    fn o08_a_page_is_nobodys_word_about_content() {
        for status in [200, 206, 400, 403, 404, 405, 511] {
            assert!(judge(ECR, status, "text/html; charset=utf-8"), "{status}");
        }
        for status in [307, 401, 429, 500, 503] {
            assert!(!judge(ECR, status, "text/html"), "{status}");
        }
        for status in [200, 403, 404] {
            assert!(!judge(ECR, status, "application/json"), "{status}");
        }
        assert!(judge(ECR, 511, "text/plain"));
    }

    #[test]
    fn a_small_registry_may_tell_errors_in_pages() {
        for (status, is_another) in [(200, true), (404, false), (403, false), (511, true)] {
            let judged = judge("registry.example", status, "text/html");
            assert_eq!(judged, is_another, "{status}");
        }
    }
}
