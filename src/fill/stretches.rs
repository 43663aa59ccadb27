//! Which connection fetches which part of a blob. Pure.
//!
//! Invariants: no byte is passed on by two, though the beginning of a part may be fetched by its own lane
//! and by the one before it, which goes on; whoever is in front is never told to wait; while anything is
//! missing somebody fetches it.

use std::ops::Range;

/// What is left of a stretch that is cut in two: at least this is between the cut and where its lane is,
/// in bytes, so that a piece on its way is on the near side.
const MARGIN: u64 = 1024 * 1024;

/// One connection's part.
#[derive(Debug)]
struct Stretch {
    lane: u64,
    /// Offset of the next byte to come.
    at: u64,
    end: u64,
    /// How far its connection reaches, which may be beyond what is left to it.
    reach: u64,
    /// Whether a piece of it is being passed on, or was.
    has_begun: bool,
}

/// The parts of one blob that are still to come.
#[derive(Debug)]
pub(super) struct Stretches {
    /// Those under way, by offset.
    taken: Vec<Stretch>,
    /// Those nobody fetches yet, by offset.
    free: Vec<Range<u64>>,
    /// How many of those under way may read; the others wait.
    width: usize,
    /// Never more than one any more.
    alone: bool,
}

/// What becomes of a lane that cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leaving {
    /// Nobody can go on without it.
    Front,
    /// Others will fetch what it leaves.
    Behind,
}

impl Stretches {
    /// All the gaps of a blob; `first` is taken by the lane of that number, the others are free.
    pub(super) fn new(first: u64, gaps: Vec<Range<u64>>) -> Self {
        let mut stretches = Self {
            taken: Vec::new(),
            free: gaps,
            width: 1,
            alone: false,
        };
        stretches.take(first, u64::MAX);
        stretches
    }

    /// The next free part for this lane, of `most` bytes. `None` if there is none, or no room for it.
    pub(super) fn take(&mut self, lane: u64, most: u64) -> Option<Range<u64>> {
        if self.taken.len() >= self.width {
            return None;
        }
        let gap = self.free.first_mut()?;
        let start = gap.start;
        let end = gap.end.min(start.saturating_add(most));
        gap.start = end;
        if gap.is_empty() {
            self.free.remove(0);
        }
        let after = self.taken.partition_point(|other| other.at < start);
        let stretch = Stretch {
            lane,
            at: start,
            end,
            reach: end,
            has_begun: false,
        };
        self.taken.insert(after, stretch);
        Some(start..end)
    }

    /// Cuts what the last lane still has to fetch, so that others find something to do; they leave it
    /// `keeps` bytes.
    pub(super) fn share(&mut self, keeps: u64) {
        let Some(last) = self.taken.last_mut().filter(|_| !self.alone) else {
            return;
        };
        let cut = last.at.saturating_add(keeps.max(MARGIN));
        if cut.saturating_add(MARGIN) < last.end {
            self.free.push(cut..last.end);
            self.free.sort_unstable_by_key(|gap| gap.start);
            last.end = cut;
        }
    }

    /// The end of a lane's part, which may come nearer while it is under way.
    pub(super) fn end(&self, lane: u64) -> u64 {
        let stretch = self.taken.iter().find(|stretch| stretch.lane == lane);
        stretch.map_or(0, |stretch| stretch.end)
    }

    /// Whether a piece that a lane has at hand is its own to be passed on, as it is until
    /// [`advance`](Self::advance); false where the lane before it went on into its part.
    pub(super) fn claim(&mut self, lane: u64) -> bool {
        let stretch = self.taken.iter_mut().find(|stretch| stretch.lane == lane);
        stretch.map(|stretch| stretch.has_begun = true).is_some()
    }

    /// Bytes that a lane claimed were passed on; true at the end of its part. Where its connection reaches
    /// further, and whoever has the next part has nothing of it at hand yet, it goes on.
    pub(super) fn advance(&mut self, lane: u64, bytes: u64) -> bool {
        let Some(index) = self.taken.iter().position(|stretch| stretch.lane == lane) else {
            return true;
        };
        let stretch = &mut self.taken[index];
        stretch.at += bytes;
        if stretch.at < stretch.end {
            return false;
        }
        let (end, reach) = (stretch.end, stretch.reach);
        let next = self.taken.get(index + 1);
        if let Some(next) = next.filter(|next| next.at == end && !next.has_begun && reach > end) {
            self.taken[index].end = next.end;
            self.taken.remove(index + 1);
            return false;
        }
        self.taken.remove(index);
        true
    }

    /// A lane cannot go on: what it leaves is for others, unless it is in front and stays there.
    pub(super) fn leave(&mut self, lane: u64) -> Leaving {
        let Some(index) = self.taken.iter().position(|stretch| stretch.lane == lane) else {
            return Leaving::Behind;
        };
        let Some(before) = index.checked_sub(1) else {
            return Leaving::Front;
        };
        let left = self.taken.remove(index);
        let before = &mut self.taken[before];
        if before.end == left.at && before.reach > before.end {
            before.end = left.end;
        } else {
            self.free.push(left.at..left.end);
            self.free.sort_unstable_by_key(|gap| gap.start);
        }
        Leaving::Behind
    }

    /// Whether this lane may read now.
    pub(super) fn may_read(&self, lane: u64) -> bool {
        let index = self.taken.iter().position(|stretch| stretch.lane == lane);
        index.is_none_or(|index| index < self.width)
    }

    /// Whether what this lane fetches is what is wanted next.
    pub(super) fn is_in_front(&self, lane: u64) -> bool {
        self.taken.first().is_some_and(|first| first.lane == lane)
    }

    /// Sets how many lanes may read, and whether others may take parts beside them.
    pub(super) fn set_width(&mut self, width: usize) {
        self.width = if self.alone { 1 } else { width.max(1) };
    }

    /// How many parts are under way.
    pub(super) fn under_way(&self) -> usize {
        self.taken.len()
    }

    /// How many bytes are not yet under way to anybody.
    pub(super) fn free_bytes(&self) -> u64 {
        self.free.iter().map(|gap| gap.end - gap.start).sum()
    }

    /// How many bytes are still to come.
    pub(super) fn left(&self) -> u64 {
        let taken = self.taken.iter().map(|stretch| stretch.end - stretch.at);
        taken.sum::<u64>() + self.free_bytes()
    }

    /// Makes sure that there will never be a second lane beside this one, if all that is left is one part
    /// under way; true if so.
    pub(super) fn stay_alone(&mut self) -> bool {
        let alone = self.free.is_empty() && self.taken.len() <= 1;
        self.alone |= alone;
        alone
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Spans;
    use proptest::prelude::*;

    const MIB: u64 = 1024 * 1024;

    fn whole(len: u64) -> Vec<Range<u64>> {
        std::iter::once(0..len).collect()
    }

    #[test]
    fn one_lane_has_it_all_until_it_shares() {
        let mut stretches = Stretches::new(0, whole(100 * MIB));
        assert_eq!(
            (stretches.end(0), stretches.take(1, MIB)),
            (100 * MIB, None)
        );
        stretches.set_width(2);
        assert_eq!(stretches.take(1, MIB), None, "nothing is free");
        stretches.advance(0, 10 * MIB);
        stretches.share(8 * MIB);
        assert_eq!(stretches.end(0), 18 * MIB);
        assert_eq!(stretches.take(1, u64::MAX), Some(18 * MIB..100 * MIB));
        stretches.set_width(1);
        assert!(stretches.may_read(0) && !stretches.may_read(1));
        stretches.advance(1, MIB);
        assert!(stretches.advance(0, 8 * MIB));
        assert!(stretches.may_read(1), "it is in front now");
    }

    #[test]
    fn what_a_lane_leaves_goes_back_to_the_one_before_it_or_to_anybody() {
        let mut stretches = Stretches::new(0, whole(100 * MIB));
        stretches.set_width(3);
        stretches.share(10 * MIB);
        assert_eq!(stretches.take(1, 10 * MIB), Some(10 * MIB..20 * MIB));
        assert_eq!(stretches.take(2, 10 * MIB), Some(20 * MIB..30 * MIB));
        assert_eq!(stretches.leave(1), Leaving::Behind);
        assert_eq!(stretches.end(0), 20 * MIB);
        stretches.advance(0, 10 * MIB);
        assert!(
            !stretches.advance(0, 10 * MIB),
            "nothing of the next has come"
        );
        assert_eq!(stretches.end(0), 30 * MIB);
        stretches.leave(2);
        assert_eq!(stretches.take(2, 10 * MIB), Some(30 * MIB..40 * MIB));
        stretches.advance(2, MIB);
        assert_eq!(stretches.leave(2), Leaving::Behind);
        assert_eq!(stretches.take(3, MIB), Some(31 * MIB..32 * MIB));
        assert_eq!(stretches.leave(0), Leaving::Front);
    }

    #[test]
    fn who_stays_alone_shares_no_more() {
        let mut stretches = Stretches::new(0, whole(100 * MIB));
        assert!(stretches.stay_alone());
        stretches.set_width(4);
        stretches.share(10 * MIB);
        assert_eq!(
            (stretches.end(0), stretches.take(1, MIB)),
            (100 * MIB, None)
        );
        let mut stretches = Stretches::new(0, vec![0..MIB, 2 * MIB..3 * MIB]);
        assert!(!stretches.stay_alone());
    }

    #[test]
    fn u09_a_part_of_which_a_piece_is_at_hand_is_taken_over_by_nobody() {
        let mut stretches = Stretches::new(0, whole(100 * MIB));
        stretches.set_width(2);
        stretches.share(10 * MIB);
        assert_eq!(stretches.take(1, u64::MAX), Some(10 * MIB..100 * MIB));
        assert!(stretches.claim(1));
        assert!(stretches.advance(0, 10 * MIB), "the next has begun");
        stretches.advance(1, MIB);
        assert_eq!(stretches.left(), 89 * MIB);
    }

    #[test]
    fn u09_a_piece_of_a_part_that_was_taken_over_is_nobodys() {
        let mut stretches = Stretches::new(0, whole(100 * MIB));
        stretches.set_width(2);
        stretches.share(10 * MIB);
        assert_eq!(stretches.take(1, u64::MAX), Some(10 * MIB..100 * MIB));
        assert!(!stretches.advance(0, 10 * MIB), "it goes on");
        assert!(!stretches.claim(1));
        assert_eq!(stretches.end(0), 100 * MIB);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Width(usize),
        Share(u64),
        Take(u64),
        /// A lane has so many bytes at hand.
        Receive(usize, u64),
        /// It may pass them on, or throws them away.
        Claim(usize),
        /// It has passed them on.
        Advance(usize),
        Leave(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (1usize..6).prop_map(Step::Width),
            (0u64..8 * MIB).prop_map(Step::Share),
            (MIB..8 * MIB).prop_map(Step::Take),
            (0usize..6, 1u64..MIB).prop_map(|(nth, bytes)| Step::Receive(nth, bytes)),
            (0usize..6).prop_map(Step::Claim),
            (0usize..6).prop_map(Step::Advance),
            (1usize..6).prop_map(Step::Leave),
        ]
    }

    /// A piece that a lane has, and whether it may be passed on.
    struct Piece {
        lane: u64,
        offset: u64,
        bytes: u64,
        is_claimed: bool,
    }

    proptest! {
        #[test]
        fn every_byte_is_passed_on_once(steps in proptest::collection::vec(step(), 0..300)) {
            const LEN: u64 = 32 * MIB;
            let mut stretches = Stretches::new(0, whole(LEN));
            let mut next_lane = 1;
            let mut pieces: Vec<Piece> = Vec::new();
            let mut passed = Spans::default();
            let round = [
                Step::Take(u64::MAX),
                Step::Receive(0, MIB),
                Step::Claim(0),
                Step::Advance(0),
            ];
            let closing = (0..200).flat_map(|_| round.clone());
            for step in steps.into_iter().chain(closing) {
                match step {
                    Step::Width(width) => stretches.set_width(width),
                    Step::Share(keeps) => stretches.share(keeps),
                    Step::Take(most) => {
                        if stretches.take(next_lane, most).is_some() {
                            next_lane += 1;
                        }
                    }
                    Step::Receive(index, bytes) => {
                        let Some(stretch) = stretches.taken.get(index) else {
                            continue;
                        };
                        let lane = stretch.lane;
                        let has_one = pieces.iter().any(|piece| piece.lane == lane);
                        if stretches.may_read(lane) && !has_one {
                            pieces.push(Piece {
                                lane,
                                offset: stretch.at,
                                bytes: bytes.min(stretch.end - stretch.at),
                                is_claimed: false,
                            });
                        }
                    }
                    Step::Claim(nth) => {
                        let Some(piece) = pieces.get_mut(nth) else {
                            continue;
                        };
                        piece.is_claimed = stretches.claim(piece.lane);
                        if !piece.is_claimed {
                            pieces.remove(nth);
                        }
                    }
                    Step::Advance(nth) => {
                        if pieces.get(nth).is_some_and(|piece| piece.is_claimed) {
                            let Piece { lane, offset, bytes, .. } = pieces.remove(nth);
                            let span = offset..offset + bytes;
                            prop_assert_eq!(passed.gaps(span.clone()), [span.clone()]);
                            passed.add(span);
                            stretches.advance(lane, bytes);
                        }
                    }
                    Step::Leave(index) => {
                        let lane = stretches.taken.get(index).map(|stretch| stretch.lane);
                        let has_one = |lane| pieces.iter().any(|piece| piece.lane == lane);
                        if let Some(lane) = lane.filter(|lane| !has_one(*lane)) {
                            prop_assert_eq!(stretches.leave(lane), Leaving::Behind);
                        }
                    }
                }
                let missing = passed.gaps(0..LEN).into_iter().map(|gap| gap.end - gap.start);
                prop_assert_eq!(stretches.left(), missing.sum::<u64>());
            }
            prop_assert_eq!(stretches.left(), 0);
        }
    }
}
