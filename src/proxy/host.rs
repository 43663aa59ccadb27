//! The one host of a request: what routing, policy and log go by.

use http::header;
use http::request;
use memchr::memchr;

use super::error::Refusal;

/// The host of a request, without its port. An absolute target
/// and h2's `:authority` must agree with a `Host` beside them.
pub(super) fn host(request: &request::Parts) -> Result<&str, Refusal> {
    let mut hosts = request.headers.get_all(header::HOST).iter();
    let from_header = match hosts.next() {
        Some(host) => Some(host.to_str().map_err(|_| Refusal::Host)?),
        None => None,
    };
    let from_target = request.uri.authority().map(http::uri::Authority::as_str);
    let authority = match (from_target, from_header) {
        (Some(target), Some(header)) if !target.eq_ignore_ascii_case(header) => None,
        (Some(target), _) => Some(target),
        (None, header) => header,
    };
    let authority = authority
        .filter(|_| hosts.next().is_none())
        .ok_or(Refusal::Host)?;
    without_port(authority).ok_or(Refusal::Host)
}

/// The host of an authority; `None` for user information, an empty host or a port that is not one.
fn without_port(authority: &str) -> Option<&str> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            let port = rest.strip_prefix(':');
            (host, port.or(rest.is_empty().then_some("0"))?)
        }
        None => match memchr(b':', authority.as_bytes()) {
            Some(colon) => (&authority[..colon], &authority[colon + 1..]),
            None => (authority, "0"),
        },
    };
    // A name may be written with the root's dot behind it.
    let host = host.strip_suffix('.').unwrap_or(host);
    let are_all = |sum, byte: u8| sum & HOST_BYTES[usize::from(byte)];
    let is_host = !host.is_empty() && host.bytes().fold(true, are_all);
    (is_host && port.parse::<u16>().is_ok()).then_some(host)
}

/// Which bytes a name or an address is made of.
const HOST_BYTES: [bool; 256] = {
    let mut is_one = [false; 256];
    let mut byte: u8 = 0;
    while byte < 128 {
        is_one[byte as usize] =
            byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':');
        byte += 1;
    }
    is_one
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p05_a_host_is_read_one_way() {
        for (authority, host) in [
            ("registry.example", Some("registry.example")),
            ("registry.example:443", Some("registry.example")),
            ("registry.example.", Some("registry.example")),
            ("[::1]:5000", Some("::1")),
            ("[::1]", Some("::1")),
            ("user@registry.example", None),
            ("registry.example:", None),
            ("registry.example:99999", None),
            ("registry.example:1:2", None),
            ("", None),
            (":443", None),
            ("[::1]x", None),
            ("a/b", None),
        ] {
            assert_eq!(without_port(authority), host, "{authority}");
        }
    }
}
