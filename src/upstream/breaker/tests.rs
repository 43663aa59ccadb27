//! The breaker against a link that comes and goes, on tokio's paused clock.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use proptest::prelude::*;
use tokio::task::JoinSet;

use super::*;
use crate::upstream::error::{Absent, TokenError};
use crate::upstream::metrics::UpstreamMetrics;

const REFUSED: UpstreamError = UpstreamError::Unreachable(Unreachable::Connect);

/// What a knock meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Up,
    Refused,
    BlackHole,
}

#[derive(Clone)]
struct Fake(Arc<World>);

struct World {
    link: Mutex<Link>,
    has_token: watch::Sender<bool>,
    knocks: AtomicU32,
    out: AtomicUsize,
    most_out: AtomicUsize,
}

struct Out<'a>(&'a World);

impl Drop for Out<'_> {
    fn drop(&mut self) {
        self.0.out.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Fake {
    fn new(link: Link) -> Self {
        Self(Arc::new(World {
            link: Mutex::new(link),
            has_token: watch::Sender::new(true),
            knocks: AtomicU32::new(0),
            out: AtomicUsize::new(0),
            most_out: AtomicUsize::new(0),
        }))
    }

    fn set(&self, link: Link) {
        *self.0.link.lock().unwrap() = link;
    }

    fn knocks(&self) -> u32 {
        self.0.knocks.load(Ordering::SeqCst)
    }

    fn breaker(&self) -> Breaker {
        let meter = UpstreamMetrics::default().meter("test".into());
        Breaker::closed(self.clone(), meter)
    }
}

impl Probe for Fake {
    fn knock(&self) -> BoxFuture<'_, Result<(), UpstreamError>> {
        Box::pin(async {
            self.0.knocks.fetch_add(1, Ordering::SeqCst);
            let now_out = self.0.out.fetch_add(1, Ordering::SeqCst) + 1;
            self.0.most_out.fetch_max(now_out, Ordering::SeqCst);
            let _out = Out(&self.0);
            // What goes into a black hole stays there.
            let link = *self.0.link.lock().unwrap();
            match link {
                Link::Up => Ok(()),
                Link::Refused => Err(REFUSED),
                Link::BlackHole => std::future::pending().await,
            }
        })
    }

    fn equip(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            let mut has_token = self.0.has_token.subscribe();
            has_token.wait_for(|has| *has).await.expect("a sender");
        })
    }

    fn disconnect(&self) {}
}

fn fail(breaker: &Breaker, times: u32) {
    for _ in 0..times {
        breaker.failed(&REFUSED);
    }
}

#[tokio::test(start_paused = true)]
async fn failures_in_a_row_open_it_and_questions_are_turned_away_with_the_cause() {
    let breaker = Fake::new(Link::Refused).breaker();
    fail(&breaker, LIMIT - 1);
    assert_eq!(breaker.admit(), Ok(()));
    breaker.answered();
    fail(&breaker, LIMIT - 1);
    assert_eq!(breaker.admit(), Ok(()), "an answer lies between");
    breaker.failed(&REFUSED);
    assert_eq!(breaker.admit(), Err(away(&REFUSED)));
    assert_eq!(breaker.outage().map(|outage| outage.cause), Some(REFUSED));
    assert!(!breaker.is_answering());
}

#[tokio::test(start_paused = true)]
async fn a_no_says_nothing_about_the_link() {
    let breaker = Fake::new(Link::Refused).breaker();
    for _ in 0..100 {
        breaker.failed(&UpstreamError::Absent(Absent::Manifest));
        breaker.failed(&UpstreamError::Refused);
        breaker.failed(&UpstreamError::Truncated);
    }
    assert_eq!(breaker.admit(), Ok(()));
}

#[tokio::test(start_paused = true)]
async fn it_closes_within_a_second_of_the_return_however_long_probes_hang() {
    for down in [Link::Refused, Link::BlackHole] {
        for outage_ms in [0, 10, 499, 4_999, 5_001, 61_337, 86_400_000] {
            let link = Fake::new(down);
            let breaker = link.breaker();
            fail(&breaker, LIMIT);
            tokio::time::sleep(Duration::from_millis(outage_ms)).await;
            assert!(breaker.outage().is_some(), "{down:?} {outage_ms}");
            link.set(Link::Up);
            let back = Instant::now();
            breaker.answers().await;
            assert_eq!(breaker.admit(), Ok(()));
            let took = back.elapsed();
            assert!(
                took <= Duration::from_secs(1),
                "{down:?} {outage_ms}: {took:?}"
            );
            assert!(link.0.most_out.load(Ordering::SeqCst) <= MAX_PROBES);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn probes_of_a_long_outage_are_few() {
    let link = Fake::new(Link::Refused);
    let breaker = link.breaker();
    fail(&breaker, LIMIT);
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!((1000..1600).contains(&link.knocks()), "{}", link.knocks());
    drop(breaker);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let after = link.knocks();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(link.knocks(), after, "nobody asks any more");
}

#[tokio::test(start_paused = true)]
async fn k05_without_a_token_it_stays_open_though_the_link_is_up() {
    let link = Fake::new(Link::Up);
    link.0.has_token.send_replace(false);
    let breaker = link.breaker();
    breaker.failed(&UpstreamError::NoToken(TokenError::NoCredentials));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(breaker.outage().is_some());
    assert_eq!(link.knocks(), 0, "the registry is not what is missing");
    link.0.has_token.send_replace(true);
    breaker.answers().await;
    assert_eq!(breaker.admit(), Ok(()));
}

#[tokio::test(start_paused = true)]
async fn the_first_failure_after_a_probe_opens_it_again() {
    let link = Fake::new(Link::Up);
    let breaker = link.breaker();
    fail(&breaker, LIMIT);
    breaker.answers().await;
    breaker.failed(&REFUSED);
    assert!(breaker.outage().is_some());
    breaker.answers().await;
    breaker.answered();
    fail(&breaker, LIMIT - 1);
    assert!(breaker.outage().is_none(), "an answer is worth more");
    assert!(breaker.is_answering());
}

#[tokio::test(start_paused = true)]
async fn answers_that_say_failure_open_it_only_where_a_probe_fails_as_well() {
    const FAILING: UpstreamError = UpstreamError::Failing { status: 500 };
    let link = Fake::new(Link::Up);
    let breaker = link.breaker();
    for _ in 0..2 {
        for _ in 0..100 {
            breaker.failed(&FAILING);
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert_eq!(breaker.admit(), Ok(()), "it is one client's matter");
        }
        assert_eq!(link.knocks(), 1, "once it is found to answer it is trusted");
    }
    link.set(Link::Refused);
    tokio::time::sleep(TRUST).await;
    breaker.failed(&FAILING);
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(breaker.admit(), Err(away(&REFUSED)));
}

#[tokio::test(start_paused = true)]
async fn what_one_client_brought_about_makes_no_lost_connection_an_outage() {
    const FAILING: UpstreamError = UpstreamError::Failing { status: 500 };
    let link = Fake::new(Link::Up);
    let breaker = link.breaker();
    for _ in 0..100 {
        breaker.failed(&FAILING);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for _ in 1..LIMIT {
        breaker.failed(&REFUSED);
        assert_eq!(breaker.admit(), Ok(()));
    }
    breaker.failed(&REFUSED);
    assert_eq!(breaker.admit(), Err(away(&REFUSED)));
}

#[tokio::test(start_paused = true)]
async fn a_question_into_a_black_hole_is_told_by_a_probe() {
    let link = Fake::new(Link::BlackHole);
    let breaker = link.breaker();
    let began = Instant::now();
    let error = tokio::select! {
        () = breaker.watched(std::future::pending::<()>()) => unreachable!(),
        error = breaker.link_down() => error,
    };
    assert!(matches!(error, UpstreamError::Away(_)), "{error}");
    assert_eq!(began.elapsed(), SUSPECT_AFTER + SUSPECT_TIME);
    // One that is slow, and alive, is waited for.
    link.set(Link::Up);
    breaker.answers().await;
    let slow = tokio::time::sleep(Duration::from_secs(20));
    tokio::select! {
        () = breaker.watched(slow) => {}
        error = breaker.link_down() => panic!("{error}"),
    }
}

#[tokio::test(start_paused = true)]
async fn while_others_are_answered_probes_in_vain_open_nothing() {
    let link = Fake::new(Link::BlackHole);
    let breaker = link.breaker();
    for _ in 0..3 {
        breaker.suspect();
        tokio::time::sleep(SUSPECT_TIME / 2).await;
        breaker.answered();
        tokio::time::sleep(SUSPECT_TIME).await;
        assert_eq!(breaker.admit(), Ok(()));
    }
    assert_eq!(link.knocks(), 3, "each suspicion is looked into");
    breaker.suspect();
    tokio::time::sleep(2 * SUSPECT_TIME).await;
    assert!(breaker.admit().is_err(), "nobody was answered");
}

#[tokio::test(start_paused = true)]
async fn o05_who_waits_on_is_told_though_others_were_answered_before() {
    let link = Fake::new(Link::BlackHole);
    let breaker = link.breaker();
    breaker.suspect();
    breaker.answered();
    let began = Instant::now();
    let error = tokio::select! {
        () = breaker.watched(std::future::pending::<()>()) => unreachable!(),
        error = breaker.link_down() => error,
    };
    assert!(matches!(error, UpstreamError::Away(_)), "{error}");
    assert!(began.elapsed() <= SUSPECT_AFTER + 2 * SUSPECT_TIME);
}

#[tokio::test(start_paused = true)]
async fn o11_those_who_waited_do_not_set_out_as_one() {
    let link = Fake::new(Link::Refused);
    let breaker = Arc::new(link.breaker());
    fail(&breaker, LIMIT);
    let mut waiting = JoinSet::new();
    for _ in 0..1000 {
        let breaker = Arc::clone(&breaker);
        waiting.spawn(async move {
            breaker.answers().await;
            Instant::now()
        });
    }
    tokio::time::sleep(Duration::from_secs(30)).await;
    link.set(Link::Up);
    let mut released = waiting.join_all().await;
    released.sort();
    let busiest = released
        .iter()
        .map(|from| {
            let until = *from + RELEASE / 10;
            released
                .iter()
                .filter(|at| (*from..until).contains(at))
                .count()
        })
        .max();
    assert!(
        busiest < Some(200),
        "{busiest:?} within a tenth of the time"
    );
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Failed(u8),
    Answered,
    Found,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        (0_u8..6).prop_map(Event::Failed),
        Just(Event::Answered),
        Just(Event::Found),
    ];
    proptest::collection::vec(event, 0..60)
}

proptest! {
    /// Whatever happened, an answer closes it, and only failures that weigh enough open it.
    #[test]
    fn it_never_stays_open_after_an_answer(events in events()) {
        let errors = [
            REFUSED,
            UpstreamError::Failing { status: 503 },
            UpstreamError::TooSlow(Deadline::Connect),
            UpstreamError::NoToken(TokenError::TooSlow),
            UpstreamError::Absent(Absent::Blob),
            UpstreamError::Refused,
        ];
        let mut state = State::default();
        let mut in_a_row = 0;
        for event in events {
            let was_open = state.outage.is_some();
            match event {
                Event::Failed(which) => {
                    let error = &errors[usize::from(which)];
                    in_a_row += weight(error);
                    let opened = state.failed(error, SystemTime::now());
                    prop_assert_eq!(opened, !was_open && in_a_row >= LIMIT);
                }
                Event::Answered => {
                    prop_assert_eq!(state.answered().is_some(), was_open);
                    in_a_row = 0;
                }
                Event::Found => {
                    prop_assert_eq!(state.found().is_some(), was_open);
                    in_a_row = LIMIT - 1;
                }
            }
            prop_assert_eq!(state.outage.is_some(), in_a_row >= LIMIT);
        }
    }
}
