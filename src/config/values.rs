//! Single values as the operator writes them: durations, sizes, addresses, names. Pure.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use http::Uri;
use url::{Host, Url};

use crate::oci::Pattern;
use crate::upstream::{HostPattern, ParseHostPatternError, Rate};

/// Longest accepted duration: far beyond use, and safely added to any point in time.
const MAX_DURATION: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// Slower lines do not carry images; faster ones are none.
const MIN_RATE: u64 = 1 << 10;
const MAX_RATE: u64 = 1 << 40;

/// Where to listen, and whether TLS is spoken there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ListenAddress {
    /// TLS, or plain HTTP.
    pub tls: bool,
    /// Address and port; port 0 lets the system choose.
    pub address: SocketAddr,
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.address)
    }
}

/// An amount of disk.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Size {
    /// This many bytes.
    Bytes(u64),
    /// This share of the file system, from 0 to 100.
    Percent(f64),
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "{bytes} bytes"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// `5s`, `24h`, `1h 30m`.
pub fn duration(text: &str) -> Result<Duration, String> {
    if !text.is_empty() && text != "0" && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!(
            "{text:?} has no unit; write for example \"{text}s\""
        ));
    }
    let duration = humantime::parse_duration(text)
        .map_err(|_| format!("{text:?} is not a duration such as \"5s\", \"10m\" or \"24h\""))?;
    if duration > MAX_DURATION {
        return Err(format!("{text:?} is longer than ten years"));
    }
    Ok(duration)
}

/// `200GiB`, `1.5TB`, `1048576`, `70%`.
pub(super) fn size(text: &str) -> Result<Size, String> {
    match text.strip_suffix('%') {
        None => bytes(text).map(Size::Bytes),
        Some(number) => match number.trim().parse::<f64>() {
            Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(Size::Percent(percent)),
            _ => Err(format!("{text:?} is not a share from 0% to 100%")),
        },
    }
}

/// `200GiB`, `1.5TB`, `1048576`.
pub fn bytes(text: &str) -> Result<u64, String> {
    const UNITS: &[(&str, u64)] = &[
        ("", 1),
        ("B", 1),
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("TiB", 1 << 40),
        ("kB", 1_000),
        ("KB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("TB", 1_000_000_000_000),
    ];
    let wrong = || {
        format!("{text:?} is not a size such as \"200GiB\", \"500MB\" or a whole number of bytes")
    };
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let (_, unit) = UNITS
        .iter()
        .find(|(name, _)| *name == unit.trim())
        .ok_or_else(wrong)?;
    // In integers: a size is compared with byte counts exactly.
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let too_large = || format!("{text:?} is too large");
    if whole.is_empty() || fraction.is_empty() || fraction.len() > 6 {
        return Err(wrong());
    }
    let scale = 10_u128.pow(u32::try_from(fraction.len()).map_err(|_| wrong())?);
    let whole: u128 = whole.parse().map_err(|_| wrong())?;
    let fraction: u128 = fraction.parse().map_err(|_| wrong())?;
    let bytes = whole
        .checked_mul(scale)
        .and_then(|scaled| scaled.checked_add(fraction))
        .and_then(|scaled| scaled.checked_mul(u128::from(*unit)))
        .ok_or_else(too_large)?
        / scale;
    u64::try_from(bytes).map_err(|_| too_large())
}

/// `true` or `false`.
pub(super) fn boolean(text: &str) -> Result<bool, String> {
    text.parse()
        .map_err(|_| format!("{text:?} is neither true nor false"))
}

/// `forever`, or a duration.
pub(super) fn stale_if_error(text: &str) -> Result<Option<Duration>, String> {
    if text == "forever" {
        return Ok(None);
    }
    duration(text)
        .map(Some)
        .map_err(|reason| format!("{reason}; or \"forever\""))
}

/// `v*`: a pattern over tags; `true` is all of them, `false` none.
pub(super) fn tag_pattern(text: &str) -> Result<Option<Pattern>, String> {
    let pattern = match text {
        "false" => return Ok(None),
        "true" => "*",
        pattern => pattern,
    };
    let pattern = pattern.parse::<Pattern>().ok();
    let pattern = pattern
        .filter(|pattern| !pattern.as_str().contains(['/', ':']) && pattern.as_str() != "**");
    pattern.map(Some).ok_or_else(|| {
        format!(
            "{text:?} is no pattern over tags, such as \"v*\"; a [[route]] says which repositories \
             it is for"
        )
    })
}

/// `team/**`: a pattern over repositories.
pub(super) fn repository_pattern(text: &str) -> Result<Pattern, String> {
    Pattern::of_repositories(text)
        .map_err(|error| format!("{text:?} is no pattern over repositories: {error}"))
}

/// `20MiB/s`, or `unlimited`: bytes a second.
pub(super) fn bandwidth(text: &str) -> Result<Option<Rate>, String> {
    if text == "unlimited" {
        return Ok(None);
    }
    let rate = text.strip_suffix("/s").map(|amount| bytes(amount.trim()));
    let Some(Ok(rate)) = rate else {
        return Err(format!(
            "{text:?} is neither \"unlimited\" nor bytes a second such as \"20MiB/s\" or \"500kB/s\""
        ));
    };
    match Rate::new(rate).filter(|_| (MIN_RATE..=MAX_RATE).contains(&rate)) {
        Some(rate) => Ok(Some(rate)),
        None => Err(format!("{text:?} is not between 1KiB/s and 1TiB/s")),
    }
}

/// `https://[::]:443`, `http://127.0.0.1:5000`.
pub(super) fn listen(text: &str) -> Result<ListenAddress, String> {
    let wrong = || {
        format!(
            "{text:?} is not an address such as \"https://[::]:443\" or \"http://127.0.0.1:5000\""
        )
    };
    let (tls, rest) = match text.split_once("://") {
        Some(("https", rest)) => (true, rest),
        Some(("http", rest)) => (false, rest),
        _ => return Err(wrong()),
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let default_port = if tls { 443 } else { 80 };
    let bare = || {
        let host = rest.strip_prefix('[').and_then(|r| r.strip_suffix(']'));
        let address: IpAddr = host.unwrap_or(rest).parse().ok()?;
        (address.is_ipv4() || host.is_some()).then(|| SocketAddr::new(address, default_port))
    };
    let address = rest.parse().ok().or_else(bare).ok_or_else(|| {
        let host = rest.rsplit_once(':').map_or(rest, |(host, _)| host);
        if host.is_empty() {
            format!("{text:?} names no address; write \"[::]\" for all of them")
        } else if host.bytes().any(|b| b.is_ascii_alphabetic()) && !host.starts_with('[') {
            format!("{text:?} is a name; listening wants an address, such as \"[::]\" for all")
        } else {
            wrong()
        }
    })?;
    Ok(ListenAddress { tls, address })
}

/// `127.0.0.1:9090`, or `off`.
pub(super) fn admin(text: &str) -> Result<Option<SocketAddr>, String> {
    if text == "off" {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| {
        format!(
            "{text:?} is neither an address with a port, such as \"127.0.0.1:9090\", nor \"off\""
        )
    })
}

/// A name (or address) that clients use for us, in lower case.
pub(super) fn domain(text: &str) -> Result<String, String> {
    if text.contains("://") || text.contains('/') {
        return Err(format!("{text:?} is a URL; write the name alone"));
    }
    if text.contains('*') {
        return Err(format!("{text:?} has a wildcard; name each domain"));
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address.to_string());
    }
    if let Some((name, port)) = text.rsplit_once(':')
        && port.bytes().all(|byte| byte.is_ascii_digit())
    {
        return Err(format!(
            "{text:?} has a port; write {name:?}, it holds for every port"
        ));
    }
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    if host_name(&name) {
        Ok(name)
    } else {
        Err(format!("{text:?} is not a host name"))
    }
}

/// A host name as certificates and URLs have it (RFC 1123, underscores refused), lower case.
pub(super) fn host_name(name: &str) -> bool {
    name.len() <= 253
        && name.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        })
}

/// A host, or all hosts below a domain.
pub(super) fn host_pattern(text: &str) -> Result<HostPattern, String> {
    text.parse()
        .map_err(|error: ParseHostPatternError| format!("{text:?}: {error}"))
}

/// The URL to connect to instead of the registry. Plain HTTP is for loopback only: it would
/// carry the registry's credentials.
pub(super) fn endpoint(text: &str) -> Result<Uri, String> {
    let url = Url::parse(text)
        .map_err(|_| format!("{text:?} is not a URL such as \"https://host:port\""))?;
    if !url.username().is_empty() || url.password().is_some() {
        // The text is not repeated: it holds a password.
        return Err("has a user or a password in it; use auth = \"basic\"".to_owned());
    }
    let loopback = match url.host() {
        None => return Err(format!("{text:?} names no host")),
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
    };
    if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
        return Err(format!("{text:?} has more than scheme, host and port"));
    }
    let uri = url
        .as_str()
        .parse()
        .map_err(|_| format!("{text:?} is not a URL such as \"https://host:port\""));
    match url.scheme() {
        "https" => uri,
        "http" if loopback => uri,
        "http" => Err(format!("{text:?}: http:// is accepted for loopback only")),
        _ => Err(format!("{text:?} is neither https:// nor http://")),
    }
}

/// The name of an upstream: a folder on disk and a label of metrics.
pub(super) fn upstream_name(text: &str) -> Result<String, String> {
    let fine = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b);
    let first = text.bytes().next();
    if text.len() <= 128
        && text.bytes().all(fine)
        && first.is_some_and(|b| b.is_ascii_alphanumeric())
    {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "{text:?} is not a name of lower-case letters, digits, '-', '_' and '.', \
             beginning with a letter or a digit"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(duration("24h"), Ok(Duration::from_secs(86_400)));
        assert_eq!(duration("1h 30m"), Ok(Duration::from_secs(5_400)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        assert!(duration("30").is_err_and(|e| e.contains("no unit")));
        for text in [
            "",
            "s",
            "-5s",
            "5 parsecs",
            "forever",
            "11years",
            "99999999999999999999s",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_bytes_or_a_share() {
        assert_eq!(size("200GiB"), Ok(Size::Bytes(200 << 30)));
        assert_eq!(size("200 GiB"), Ok(Size::Bytes(200 << 30)));
        assert_eq!(size("1.5GB"), Ok(Size::Bytes(1_500_000_000)));
        assert_eq!(size("1048576"), Ok(Size::Bytes(1_048_576)));
        assert_eq!(size("70%"), Ok(Size::Percent(70.0)));
        assert_eq!(size("0.5%"), Ok(Size::Percent(0.5)));
        assert_eq!(bytes("16777215.999999TiB").map(|b| b > 1 << 63), Ok(true));
        for text in [
            "",
            "GiB",
            "200gib",
            "1e9",
            "-1",
            "1.GiB",
            ".5GiB",
            "1.2.3GiB",
            "101%",
            "-5%",
            "NaN%",
            "inf%",
            "%",
            "99999999TiB",
            "200GiB/s",
        ] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn patterns_over_tags_are_not_over_repositories() {
        let pattern = |text| tag_pattern(text).map(|p| p.map(|p| p.to_string()));
        assert_eq!(pattern("v*"), Ok(Some("v*".to_owned())));
        assert_eq!(pattern("true"), Ok(Some("*".to_owned())));
        assert_eq!(pattern("false"), Ok(None));
        for text in ["", "team/*", "**", "a:b", "v 1"] {
            assert!(pattern(text).is_err(), "{text}");
        }
        assert_eq!(stale_if_error("forever"), Ok(None));
        assert_eq!(stale_if_error("2h"), Ok(Some(Duration::from_secs(7200))));
        assert!(stale_if_error("never").unwrap_err().contains("forever"));
    }

    #[test]
    fn bandwidths_are_bytes_a_second() {
        let rate = |text| bandwidth(text).map(|rate| rate.map(Rate::get));
        assert_eq!(rate("unlimited"), Ok(None));
        assert_eq!(rate("20MiB/s"), Ok(Some(20 << 20)));
        assert_eq!(rate("1.5 GB/s"), Ok(Some(1_500_000_000)));
        assert_eq!(rate("1KiB/s"), Ok(Some(1024)));
        for text in [
            "",
            "0",
            "0MiB/s",
            "20MiB",
            "20",
            "/s",
            "20Mbit/s",
            "-1MiB/s",
            "1023/s",
            "2TiB/s",
            "5 parsecs/s",
            "Unlimited",
        ] {
            assert!(bandwidth(text).is_err(), "{text}");
        }
    }

    #[test]
    fn listen_addresses_have_a_scheme_and_an_address() {
        let address = |text| listen(text).map(|a| a.to_string());
        assert_eq!(address("https://[::]:443"), Ok("https://[::]:443".into()));
        assert_eq!(address("https://[::]"), Ok("https://[::]:443".into()));
        assert_eq!(
            address("http://127.0.0.1"),
            Ok("http://127.0.0.1:80".into())
        );
        assert_eq!(
            address("http://127.0.0.1:0/"),
            Ok("http://127.0.0.1:0".into())
        );
        for text in [
            "",
            "[::]:443",
            "127.0.0.1:80",
            "ftp://[::]:21",
            "https://:443",
            "https://[::]:443/v2",
            "https://[::]:65536",
            "https://::1",
            "https://localhost:443",
            "https://",
        ] {
            assert!(listen(text).is_err(), "{text}");
        }
    }

    #[test]
    fn domains_are_bare_names() {
        assert_eq!(
            domain("Registry.MyDomain.com."),
            Ok("registry.mydomain.com".into())
        );
        assert_eq!(domain("localhost"), Ok("localhost".into()));
        assert_eq!(domain("192.0.2.1"), Ok("192.0.2.1".into()));
        assert_eq!(domain("::1"), Ok("::1".into()));
        for text in [
            "",
            ".",
            "a..b",
            "-a.b",
            "a-.b",
            "a_b",
            "*.a.b",
            "https://a.b",
            "a.b:443",
            "a.b/c",
            "a b",
        ] {
            assert!(domain(text).is_err(), "{text}");
        }
    }

    #[test]
    fn endpoints_are_https_or_loopback_http() {
        assert!(endpoint("https://vpce-1.example.com").is_ok());
        assert!(endpoint("https://127.0.0.1:8443/").is_ok());
        assert!(endpoint("http://127.0.0.1:5000").is_ok());
        assert!(endpoint("http://[::1]:5000").is_ok());
        assert!(endpoint("http://localhost:5000").is_ok());
        for text in [
            "",
            "host",
            "http://192.0.2.1",
            "http://localhost.example.com",
            "ftp://a",
            "https://a/v2",
            "https://a?b",
            "https://a#b",
            "unix:/run/x",
        ] {
            assert!(endpoint(text).is_err(), "{text}");
        }
        let fault = endpoint("https://user:hunter2@host").expect_err("fault");
        assert!(!fault.contains("hunter2"));
    }

    #[test]
    fn upstream_names_are_safe_as_folders() {
        assert!(upstream_name("prod").is_ok());
        assert!(upstream_name("000042290000.dkr.ecr.us-west-2.amazonaws.com").is_ok());
        for text in ["", ".", "..", "a/b", "A", "-a", "a b", "a\0"] {
            assert!(upstream_name(text).is_err(), "{text}");
        }
    }
}
