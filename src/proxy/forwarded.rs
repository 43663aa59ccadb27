//! Whose request it is, where a balancer stands in between. Pure.
//!
//! Each balancer appends the address that it saw to `X-Forwarded-For`. Only what a trusted one wrote is
//! believed: the list is read from its end, for as long as who wrote the next entry is trusted.

use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;

use crate::access::Network;

const X_FORWARDED_FOR: &str = "x-forwarded-for";

/// What a trusted balancer wrote is no list of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// The address of the client that `peer` speaks for; `None` if it speaks for itself.
///
/// # Errors
/// An entry that a trusted balancer wrote is no address. Nobody is guessed in its place: what is guessed
/// might be let in by its network.
pub(super) fn client(
    headers: &HeaderMap,
    peer: SocketAddr,
    trusted: &[Network],
) -> Result<Option<IpAddr>, Malformed> {
    let is_trusted = |address: IpAddr| trusted.iter().any(|network| network.contains(address));
    if trusted.is_empty() || !is_trusted(peer.ip()) {
        return Ok(None);
    }
    let mut client = None;
    for value in headers.get_all(X_FORWARDED_FOR).iter().rev() {
        let value = value.to_str().map_err(|_| Malformed)?;
        for entry in value.rsplit(',') {
            let address = address(entry.trim()).ok_or(Malformed)?.to_canonical();
            client = Some(address);
            if !is_trusted(address) {
                return Ok(client);
            }
        }
    }
    Ok(client)
}

/// An address, with the port that some balancers add.
fn address(entry: &str) -> Option<IpAddr> {
    let in_brackets = || entry.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    let with_port = || entry.parse::<SocketAddr>().ok().map(|address| address.ip());
    entry
        .parse()
        .ok()
        .or_else(with_port)
        .or_else(|| in_brackets().map(IpAddr::V6))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn found(peer: &str, values: &[&str]) -> Result<Option<String>, Malformed> {
        let trusted = ["10.0.0.0/8", "loopback"].map(|text| text.parse().expect("a network"));
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(X_FORWARDED_FOR, value.parse().expect("a value"));
        }
        let peer = peer.parse().expect("an address");
        client(&headers, peer, &trusted).map(|client| client.map(|client| client.to_string()))
    }

    fn is(client: &str) -> Result<Option<String>, Malformed> {
        Ok(Some(client.to_owned()))
    }

    #[test]
    fn s24_only_trusted_balancers_are_believed() {
        assert_eq!(found("192.0.2.1:9", &["10.0.0.1"]), Ok(None));
        assert_eq!(found("10.0.0.1:9", &[]), Ok(None));
        assert_eq!(found("10.0.0.1:9", &["192.0.2.1"]), is("192.0.2.1"));
        // What the client wrote itself stands before what the balancer saw.
        assert_eq!(
            found("10.0.0.1:9", &["127.0.0.1, 192.0.2.1"]),
            is("192.0.2.1")
        );
        assert_eq!(
            found("10.0.0.1:9", &["127.0.0.1", "192.0.2.1"]),
            is("192.0.2.1")
        );
        assert_eq!(
            found("[::ffff:10.0.0.1]:9", &["::ffff:192.0.2.1"]),
            is("192.0.2.1")
        );
    }

    #[test]
    fn balancers_stand_in_rows() {
        let values = ["203.0.113.7, 192.0.2.1, 10.1.1.1", "10.2.2.2"];
        assert_eq!(found("10.0.0.1:9", &values), is("192.0.2.1"));
        // Somebody within asks through them.
        assert_eq!(found("10.0.0.1:9", &["10.3.3.3, 10.2.2.2"]), is("10.3.3.3"));
    }

    #[test]
    fn ports_and_brackets_are_read() {
        assert_eq!(found("10.0.0.1:9", &["192.0.2.1:4711"]), is("192.0.2.1"));
        assert_eq!(
            found("10.0.0.1:9", &["[2001:db8::1]:80"]),
            is("2001:db8::1")
        );
        assert_eq!(found("10.0.0.1:9", &["[2001:db8::1]"]), is("2001:db8::1"));
    }

    #[test]
    fn s24_what_is_no_address_is_nobodys() {
        for value in [
            "unknown",
            "",
            "192.0.2.1,",
            "_hidden",
            "[::1",
            "1.2.3.4:99999",
        ] {
            assert_eq!(found("10.0.0.1:9", &[value]), Err(Malformed), "{value:?}");
        }
        // What stands before the client's own address is of no interest.
        assert_eq!(
            found("10.0.0.1:9", &["unknown, 192.0.2.1"]),
            is("192.0.2.1")
        );
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(value in "[0-9a-f:.,\\[\\] ]{0,40}|[ -~]{0,40}") {
            let _ = found("10.0.0.1:9", &[&value]);
        }
    }
}
