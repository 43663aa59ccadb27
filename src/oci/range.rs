//! Byte ranges (RFC 9110, section 14), for what clients ask of us and what upstreams answer.

use std::fmt;
use std::str::FromStr;

/// A non-empty span of bytes, `start` included and `end` excluded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ByteRange {
    /// Offset of the first byte.
    pub start: u64,
    /// Offset after the last byte; greater than `start`.
    pub end: u64,
}

impl ByteRange {
    /// How many bytes it spans; never 0.
    #[allow(clippy::len_without_is_empty, reason = "a range is never empty")]
    pub fn len(&self) -> u64 {
        self.end - self.start
    }
}

/// One element of a `Range` header, before the size is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spec {
    /// `a-` or `a-b`; `last` is inclusive.
    From { first: u64, last: Option<u64> },
    /// `-n`: the last `n` bytes.
    Suffix(u64),
}

/// The ranges of a `Range: bytes=…` header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeSet(Vec<Spec>);

/// No range of the set lies within the content (416).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsatisfiable;

impl RangeSet {
    /// Reads a `Range` header. `None` for another unit or bad syntax, which RFC 9110 (14.2) lets a
    /// server ignore: the whole content is the answer. Numbers beyond 2^64 saturate.
    pub fn parse(header: &str) -> Option<Self> {
        let (unit, set) = header.split_once('=')?;
        if !unit.trim().eq_ignore_ascii_case("bytes") {
            return None;
        }
        let mut specs = Vec::new();
        for element in set.split(',').map(str::trim) {
            // RFC 9110 (5.6.1.2): empty list elements are to be ignored.
            if !element.is_empty() {
                specs.push(parse_spec(element)?);
            }
        }
        (!specs.is_empty()).then_some(Self(specs))
    }

    /// True for more than one range.
    pub fn is_multiple(&self) -> bool {
        self.0.len() > 1
    }

    /// True for a single `0-`, or a single range without an end: the client reads on to the last byte.
    pub fn is_open_ended(&self) -> bool {
        matches!(self.0[..], [Spec::From { last: None, .. }])
    }

    /// True where the ranges together name more bytes than content of `size` has, so that they overlap.
    /// RFC 9110 (14.2) lets a server ignore such a set: each line of it would multiply what is sent.
    pub fn repeat_content(&self, size: u64) -> bool {
        let lengths = self.0.iter().filter_map(|spec| spec.within(size));
        let total = lengths.fold(0u64, |sum, range| sum.saturating_add(range.len()));
        total > size
    }

    /// The ranges within content of `size` bytes, in the order asked, each cut at the end.
    ///
    /// # Errors
    /// [`Unsatisfiable`] when none of them holds a byte of the content.
    pub fn resolve(&self, size: u64) -> Result<Vec<ByteRange>, Unsatisfiable> {
        let resolved: Vec<_> = self.0.iter().filter_map(|spec| spec.within(size)).collect();
        if resolved.is_empty() {
            Err(Unsatisfiable)
        } else {
            Ok(resolved)
        }
    }
}

impl Spec {
    fn within(self, size: u64) -> Option<ByteRange> {
        let (start, end) = match self {
            Self::From { first, last } => (
                first,
                last.map_or(size, |last| last.saturating_add(1).min(size)),
            ),
            Self::Suffix(length) => (size.saturating_sub(length), size),
        };
        (start < end).then_some(ByteRange { start, end })
    }
}

fn parse_spec(element: &str) -> Option<Spec> {
    let (first, last) = element.split_once('-')?;
    match (first.trim(), last.trim()) {
        ("", length) => Some(Spec::Suffix(parse_saturating(length)?)),
        (first, "") => Some(Spec::From {
            first: parse_saturating(first)?,
            last: None,
        }),
        (first, last) => {
            // RFC 9110 (14.1.1) calls a range whose last is less than its first invalid, and lets it be refused or
            // ignored (14.2). It is refused, as registries do: no byte lies within it.
            Some(Spec::From {
                first: parse_saturating(first)?,
                last: Some(parse_saturating(last)?),
            })
        }
    }
}

fn parse_saturating(digits: &str) -> Option<u64> {
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some(digits.parse().unwrap_or(u64::MAX))
}

/// A `Content-Range: bytes a-b/size` of a partial answer (RFC 9110, 14.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentRange {
    /// The bytes that the answer holds.
    pub range: ByteRange,
    /// The size of the whole, where the server told it.
    pub size: Option<u64>,
}

/// The header is not a satisfied byte range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not of the form: bytes first-last/size")]
pub struct ParseContentRangeError;

impl FromStr for ContentRange {
    type Err = ParseContentRangeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (unit, rest) = text.trim().split_once(' ')?;
            let (span, size) = rest.trim().split_once('/')?;
            let (first, last) = span.split_once('-')?;
            let range = ByteRange {
                start: first.parse().ok()?,
                end: last.parse::<u64>().ok()?.checked_add(1)?,
            };
            let size = match size {
                "*" => None,
                digits => Some(digits.parse().ok()?),
            };
            let is_sound = unit.eq_ignore_ascii_case("bytes")
                && range.start < range.end
                && size.is_none_or(|size: u64| range.end <= size);
            is_sound.then_some(Self { range, size })
        };
        parse().ok_or(ParseContentRangeError)
    }
}

/// Reads the `Content-Range` of a part of an upload: `first-last`, both inclusive and without a unit
/// (distribution-spec "Pushing a blob in chunks"); some clients write it as RFC 9110 has it.
///
/// # Errors
/// When it is neither.
pub fn parse_upload_range(text: &str) -> Result<ByteRange, ParseContentRangeError> {
    if let Ok(ContentRange { range, .. }) = text.parse() {
        return Ok(range);
    }
    let digits = |text: &str| {
        let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        is_number.then(|| text.parse::<u64>().ok()).flatten()
    };
    let parse = || {
        let (first, last) = text.trim().split_once('-')?;
        let range = ByteRange {
            start: digits(first)?,
            end: digits(last)?.checked_add(1)?,
        };
        (range.start < range.end).then_some(range)
    };
    parse().ok_or(ParseContentRangeError)
}

impl fmt::Display for ContentRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bytes {}-{}/", self.range.start, self.range.end - 1)?;
        match self.size {
            Some(size) => size.fmt(f),
            None => f.write_str("*"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn resolve(header: &str, size: u64) -> Option<Result<Vec<(u64, u64)>, Unsatisfiable>> {
        RangeSet::parse(header).map(|set| {
            set.resolve(size)
                .map(|ranges| ranges.iter().map(|r| (r.start, r.end)).collect())
        })
    }

    #[test]
    fn p11_a_set_that_would_multiply_the_content_is_told() {
        for (header, repeats) in [
            ("bytes=0-", false),
            ("bytes=0-4,5-9", false),
            ("bytes=0-5,5-9", true),
            ("bytes=0-,0-", true),
            ("bytes=20-,-0", false),
        ] {
            let set = RangeSet::parse(header).unwrap();
            assert_eq!(set.repeat_content(10), repeats, "{header}");
        }
    }

    #[test]
    fn p11_range_matrix() {
        let max = u64::MAX;
        for (header, expected) in [
            ("bytes=0-0", Some(Ok(vec![(0, 1)]))),
            ("bytes=5-", Some(Ok(vec![(5, 10)]))),
            ("bytes=-5", Some(Ok(vec![(5, 10)]))),
            ("bytes=-50", Some(Ok(vec![(0, 10)]))),
            ("bytes=-0", Some(Err(Unsatisfiable))),
            ("bytes=10-", Some(Err(Unsatisfiable))),
            ("bytes=9-", Some(Ok(vec![(9, 10)]))),
            ("bytes=9-1000", Some(Ok(vec![(9, 10)]))),
            ("bytes=5-4", Some(Err(Unsatisfiable))),
            (
                "bytes=0-1, 3-4 ,,8-",
                Some(Ok(vec![(0, 2), (3, 5), (8, 10)])),
            ),
            ("bytes=5-4,0-0", Some(Ok(vec![(0, 1)]))),
            ("bytes=20-30,0-0", Some(Ok(vec![(0, 1)]))),
            ("BYTES=0-0", Some(Ok(vec![(0, 1)]))),
            ("items=0-0", None),
            ("bytes=", None),
            ("bytes=,", None),
            ("bytes=a-b", None),
            ("bytes=+1-2", None),
            ("bytes=1--2", None),
            ("bytes", None),
            ("bytes=-99999999999999999999999", Some(Ok(vec![(0, 10)]))),
            ("bytes=0-99999999999999999999999", Some(Ok(vec![(0, 10)]))),
            ("bytes=18446744073709551615-", Some(Err(Unsatisfiable))),
        ] {
            assert_eq!(resolve(header, 10), expected, "{header}");
        }
        assert_eq!(resolve("bytes=0-", 0), Some(Err(Unsatisfiable)));
        let huge = format!("bytes={}-{max}", max - 1);
        assert_eq!(resolve(&huge, max), Some(Ok(vec![(max - 1, max)])));
    }

    #[test]
    fn content_range_grammar() {
        let parsed: ContentRange = "bytes 2-4/10".parse().unwrap();
        assert_eq!(parsed.range, ByteRange { start: 2, end: 5 });
        assert_eq!(parsed.size, Some(10));
        for bad in [
            "bytes */10",
            "bytes 4-2/10",
            "bytes 2-10/10",
            "items 2-4/10",
            "bytes 2-4",
            "bytes 0-18446744073709551615/*",
        ] {
            assert!(bad.parse::<ContentRange>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn resolved_ranges_lie_within_the_content(header in "bytes=[0-9, -]{0,40}", size: u64) {
            if let Some(Ok(ranges)) = RangeSet::parse(&header).map(|set| set.resolve(size)) {
                prop_assert!(!ranges.is_empty());
                for range in ranges {
                    prop_assert!(range.start < range.end && range.end <= size);
                }
            }
        }

        #[test]
        fn no_header_makes_the_parsers_panic(text in ".*") {
            let _ = RangeSet::parse(&text);
            let _ = text.parse::<ContentRange>();
        }

        #[test]
        fn content_ranges_print_and_parse_back(start in 0..u64::MAX / 2, len in 1..u64::MAX / 4, more: Option<u32>) {
            let range = ByteRange { start, end: start + len };
            let content_range = ContentRange { range, size: more.map(|more| range.end + u64::from(more)) };
            prop_assert_eq!(content_range.to_string().parse(), Ok(content_range));
        }
    }
}
