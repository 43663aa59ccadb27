//! Which parts of a file are there: disjoint spans of offsets.

use std::iter;
use std::ops::Range;

/// Disjoint, in order, none empty, none touching the next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spans(Vec<Range<u64>>);

impl Spans {
    /// Everything before `end`.
    pub fn up_to(end: u64) -> Self {
        let mut spans = Self::default();
        spans.add(0..end);
        spans
    }

    /// Adds what may overlap or touch what is there.
    pub fn add(&mut self, span: Range<u64>) {
        if span.is_empty() {
            return;
        }
        let first = self.0.partition_point(|old| old.end < span.start);
        let after = self.0.partition_point(|old| old.start <= span.end);
        let touched = &self.0[first..after];
        let start = touched
            .first()
            .map_or(span.start, |old| old.start.min(span.start));
        let end = touched.last().map_or(span.end, |old| old.end.max(span.end));
        self.0.splice(first..after, iter::once(start..end));
    }

    /// How far everything from `offset` on is there; `offset` itself if that is not.
    pub fn end_from(&self, offset: u64) -> u64 {
        let after = self.0.partition_point(|span| span.start <= offset);
        let span = after.checked_sub(1).and_then(|index| self.0.get(index));
        span.map_or(offset, |span| span.end.max(offset))
    }

    /// What is not there of these offsets.
    pub fn gaps(&self, of: Range<u64>) -> Vec<Range<u64>> {
        let mut gaps = Vec::new();
        let mut at = of.start;
        let first = self.0.partition_point(|span| span.end <= of.start);
        for span in self.0.iter().skip(first) {
            if span.start >= of.end {
                break;
            }
            gaps.push(at..span.start);
            at = span.end;
        }
        gaps.push(at..of.end);
        gaps.retain(|gap| !gap.is_empty());
        gaps
    }

    /// What is in both.
    pub fn both(&self, other: &Self) -> Self {
        let mut both = Self::default();
        for a in &self.0 {
            for b in &other.0 {
                both.add(a.start.max(b.start)..a.end.min(b.end));
            }
        }
        both
    }

    /// True if nothing is there.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Offset behind the last byte that is there.
    pub fn end(&self) -> u64 {
        self.0.last().map_or(0, |span| span.end)
    }

    /// Bounds, little-endian, one after the other.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let bounds = self.0.iter().flat_map(|span| [span.start, span.end]);
        bounds.flat_map(u64::to_le_bytes).collect()
    }

    /// The reverse of [`Self::to_bytes`]; `None` if no spans look so.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (bounds, rest) = bytes.as_chunks::<16>();
        let mut spans = Self::default();
        for bound in bounds {
            let (start, end) = bound.split_first_chunk::<8>()?;
            let end = u64::from_le_bytes(end.try_into().ok()?);
            spans.add(u64::from_le_bytes(*start)..end);
        }
        rest.is_empty().then_some(spans)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(ranges: &[Range<u64>]) -> Spans {
        let mut spans = Spans::default();
        for range in ranges {
            spans.add(range.clone());
        }
        spans
    }

    fn set(spans: &Spans) -> Vec<bool> {
        let has = |at| spans.0.iter().any(|span| span.contains(&at));
        (0..64).map(has).collect()
    }

    proptest! {
        #[test]
        fn spans_are_sets_of_offsets(
            a in proptest::collection::vec((0u64..64, 0u64..64), 0..8),
            b in proptest::collection::vec((0u64..64, 0u64..64), 0..8),
        ) {
            let ranges = |pairs: &[(u64, u64)]| pairs.iter().map(|(s, e)| *s..*e).collect::<Vec<_>>();
            let (a, b) = (ranges(&a), ranges(&b));
            let (left, right) = (of(&a), of(&b));
            let naive = |ranges: &[Range<u64>]| -> Vec<bool> {
                (0..64).map(|at| ranges.iter().any(|range| range.contains(&at))).collect()
            };
            prop_assert_eq!(set(&left), naive(&a));
            let both: Vec<bool> = naive(&a).iter().zip(naive(&b)).map(|(a, b)| *a && b).collect();
            prop_assert_eq!(set(&left.both(&right)), both);
            let gaps: Vec<bool> = naive(&a).iter().map(|is| !is).collect();
            prop_assert_eq!(naive(&left.gaps(0..64)), gaps);
            for of in b {
                let gaps: Vec<bool> = (0..64)
                    .map(|at| of.contains(&at) && !naive(&a)[at as usize])
                    .collect();
                prop_assert_eq!(naive(&left.gaps(of)), gaps);
            }
            for at in 0..64 {
                let run = naive(&a).iter().skip(at as usize).take_while(|is| **is).count() as u64;
                prop_assert_eq!(left.end_from(at), at + run);
            }
            for pair in left.0.windows(2) {
                prop_assert!(pair[0].end < pair[1].start);
            }
            prop_assert_eq!(Spans::from_bytes(&left.to_bytes()), Some(left));
        }
    }

    #[test]
    fn half_a_bound_is_no_spans() {
        let bytes = Spans::up_to(9).to_bytes();
        assert_eq!(Spans::from_bytes(&bytes[..15]), None);
    }
}
