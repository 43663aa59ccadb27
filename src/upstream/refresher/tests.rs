use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use http::Uri;
use tokio::sync::Semaphore;

use super::*;

/// Answers from a script, the last line for ever; each answer waits for a permit.
#[derive(Clone)]
struct Scripted {
    lives: Arc<Mutex<Vec<Result<Duration, TokenError>>>>,
    calls: Arc<AtomicU32>,
    gate: Arc<Semaphore>,
    /// Attempts begun now never end.
    hole: Arc<AtomicBool>,
}

impl Scripted {
    fn new(lives: &[Result<u64, TokenError>]) -> Self {
        let lives = lives.iter().map(|life| life.map(Duration::from_secs));
        Self {
            lives: Arc::new(Mutex::new(lives.rev().collect())),
            calls: Arc::default(),
            gate: Arc::new(Semaphore::new(1_000)),
            hole: Arc::default(),
        }
    }

    fn calls(&self) -> u32 {
        self.calls.load(Ordering::SeqCst)
    }
}

impl TokenSource for Scripted {
    fn fetch(&self) -> BoxFuture<'_, Result<IssuedToken, TokenError>> {
        Box::pin(async move {
            let call = self.calls.fetch_add(1, Ordering::SeqCst);
            if self.hole.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            self.gate.acquire().await.unwrap().forget();
            let life = {
                let mut lives = self.lives.lock().unwrap();
                if lives.len() > 1 {
                    lives.pop().unwrap()
                } else {
                    lives[0]
                }
            }?;
            Ok(IssuedToken {
                authorization: HeaderValue::from_str(&format!("Basic canary{call}")).unwrap(),
                life,
            })
        })
    }
}

fn home() -> Origin {
    Origin::of(&Uri::from_static("https://a.example")).unwrap()
}

fn refresher(source: &Scripted) -> Refresher {
    Refresher::new(
        source.clone(),
        home(),
        Duration::from_secs(10),
        TokenMeter::default(),
    )
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(5)
}

#[tokio::test(start_paused = true)]
async fn k04_many_waiters_share_one_call_and_leaving_changes_nothing() {
    let source = Scripted::new(&[Ok(3600)]);
    source.gate.forget_permits(1_000);
    let refresher = refresher(&source);
    let leaver = tokio::spawn({
        let refresher = refresher.clone();
        async move { refresher.token(soon()).await }
    });
    let waiters: Vec<_> = (0..50)
        .map(|_| {
            let refresher = refresher.clone();
            tokio::spawn(async move { refresher.token(soon()).await })
        })
        .collect();
    tokio::task::yield_now().await;
    leaver.abort();
    source.gate.add_permits(1);
    for waiter in waiters {
        waiter.await.unwrap().unwrap();
    }
    assert_eq!(source.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn k05_old_token_serves_while_valid_and_never_after() {
    let source = Scripted::new(&[Ok(3600), Err(TokenError::Unreachable)]);
    let refresher = refresher(&source);
    let first = refresher.token(soon()).await.unwrap();
    let keeper = tokio::spawn({
        let refresher = refresher.clone();
        async move { refresher.keep_fresh().await }
    });
    tokio::time::sleep(Duration::from_secs(3000)).await;
    assert!(
        source.calls() > 10,
        "refreshes are tried from half of the life on"
    );
    assert!(Arc::ptr_eq(&first, &refresher.token(soon()).await.unwrap()));
    assert!(refresher.status().failing.is_some());
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(
        refresher.token(soon()).await.unwrap_err(),
        TokenError::Unreachable
    );
    assert_eq!(refresher.status().valid_until, None);
    // Recovery comes within 30 s by itself.
    source.lives.lock().unwrap()[0] = Ok(Duration::from_secs(3600));
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(refresher.status().valid_until.is_some());
    keeper.abort();
}

#[tokio::test(start_paused = true)]
async fn o07_an_attempt_that_an_outage_swallowed_does_not_delay_the_next() {
    let source = Scripted::new(&[Ok(3600)]);
    let refresher = refresher(&source);
    source.hole.store(true, Ordering::SeqCst);
    let waiting = refresher.token(Instant::now() + Duration::from_secs(3));
    assert_eq!(waiting.await.unwrap_err(), TokenError::Pending);
    source.hole.store(false, Ordering::SeqCst);
    let returned = Instant::now();
    refresher.obtain_soon().await;
    assert!(returned.elapsed() <= SOON, "{:?}", returned.elapsed());
    assert!(refresher.status().valid_until.is_some());
}

#[tokio::test(start_paused = true)]
async fn o07_a_service_out_of_reach_is_asked_often_once_the_link_is_back() {
    let source = Scripted::new(&[Err(TokenError::Unreachable)]);
    let refresher = refresher(&source);
    // Long enough for the longest wait between attempts.
    let keeper = tokio::spawn({
        let refresher = refresher.clone();
        async move { refresher.keep_fresh().await }
    });
    tokio::time::sleep(Duration::from_secs(600)).await;
    keeper.abort();
    let obtaining = refresher.obtain_soon();
    tokio::pin!(obtaining);
    let waited = tokio::time::timeout(Duration::from_secs(10), &mut obtaining).await;
    assert!(waited.is_err());
    source.lives.lock().unwrap()[0] = Ok(Duration::from_secs(3600));
    let back = Instant::now();
    obtaining.await;
    assert!(back.elapsed() <= SOON, "{:?}", back.elapsed());
}

#[tokio::test(start_paused = true)]
async fn o07_who_needs_a_token_finds_out_that_a_service_out_of_reach_is_back() {
    let source = Scripted::new(&[Err(TokenError::Unreachable)]);
    let refresher = refresher(&source);
    let keeper = tokio::spawn({
        let refresher = refresher.clone();
        async move { refresher.keep_fresh().await }
    });
    tokio::time::sleep(Duration::from_secs(600)).await;
    keeper.abort();
    // Many who ask at once cost one attempt.
    tokio::time::sleep(SOON).await;
    let before = source.calls();
    for _ in 0..100 {
        let asked = refresher.token(soon()).await;
        assert_eq!(asked.unwrap_err(), TokenError::Unreachable);
    }
    assert_eq!(source.calls(), before + 1);
    // The next would be due in a quarter of a minute.
    source.lives.lock().unwrap()[0] = Ok(Duration::from_secs(3600));
    assert!(refresher.token(soon()).await.is_err());
    tokio::time::sleep(SOON).await;
    assert!(refresher.token(soon()).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn u11_a_token_that_was_refused_is_none_to_go_on_with() {
    let source = Scripted::new(&[Ok(3600), Err(TokenError::Unreachable)]);
    let refresher = refresher(&source);
    let first = refresher.token(soon()).await.unwrap();
    refresher.obtain_soon().await;
    let refused = refresher.replace(&first, soon()).await;
    assert_eq!(refused.unwrap_err(), TokenError::Unreachable);
    let obtaining = tokio::time::timeout(Duration::from_secs(60), refresher.obtain_soon());
    assert!(obtaining.await.is_err());
}

#[tokio::test(start_paused = true)]
async fn k05_what_an_outage_swallows_is_tried_anew_while_there_is_a_token_still() {
    let source = Scripted::new(&[Ok(3600)]);
    let refresher = refresher(&source);
    let keeper = tokio::spawn({
        let refresher = refresher.clone();
        async move { refresher.keep_fresh().await }
    });
    tokio::time::sleep(Duration::from_secs(1000)).await;
    assert_eq!(source.calls(), 1);
    source.hole.store(true, Ordering::SeqCst);
    while source.calls() == 1 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    tokio::time::sleep(2 * USUAL).await;
    source.hole.store(false, Ordering::SeqCst);
    refresher.obtain_soon().await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(source.calls(), 3, "the attempt that was lost is made again");
    // And so on ahead of expiry, as before.
    tokio::time::sleep(Duration::from_secs(2000)).await;
    assert_eq!(source.calls(), 4);
    keeper.abort();
}

#[tokio::test(start_paused = true)]
async fn k07_a_short_life_is_obeyed() {
    let source = Scripted::new(&[Ok(600)]);
    let refresher = refresher(&source);
    let first = refresher.token(soon()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(530)).await;
    assert!(Arc::ptr_eq(&first, &refresher.token(soon()).await.unwrap()));
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(!Arc::ptr_eq(
        &first,
        &refresher.token(soon()).await.unwrap()
    ));
    assert_eq!(source.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn k07_a_life_of_seconds_is_one() {
    for life in 1..=3 {
        let source = Scripted::new(&[Ok(life)]);
        let refresher = refresher(&source);
        for call in 1..=3 {
            refresher.token(soon()).await.unwrap();
            refresher.token(soon()).await.unwrap();
            assert_eq!(source.calls(), call);
            tokio::time::sleep(Duration::from_secs(life)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn u11_a_refused_token_is_replaced_once_for_all() {
    let source = Scripted::new(&[Ok(3600)]);
    let refresher = refresher(&source);
    let refused = refresher.token(soon()).await.unwrap();
    let waiters: Vec<_> = (0..20)
        .map(|_| {
            let (refresher, refused) = (refresher.clone(), Arc::clone(&refused));
            tokio::spawn(async move { refresher.replace(&refused, soon()).await })
        })
        .collect();
    for waiter in waiters {
        assert!(!Arc::ptr_eq(&refused, &waiter.await.unwrap().unwrap()));
    }
    assert_eq!(source.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn u27_a_hanging_source_and_an_expired_token_are_typed_errors() {
    let hanging = Scripted::new(&[Ok(3600)]);
    hanging.gate.forget_permits(1_000);
    let waiting = refresher(&hanging);
    let began = Instant::now();
    assert_eq!(
        waiting.token(soon()).await.unwrap_err(),
        TokenError::Pending
    );
    assert_eq!(began.elapsed(), Duration::from_secs(5));
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(
        waiting.token(soon()).await.unwrap_err(),
        TokenError::TooSlow
    );

    let expired = refresher(&Scripted::new(&[Ok(0)]));
    let odd = TokenError::Odd(OddToken::Expired);
    assert_eq!(expired.token(soon()).await.unwrap_err(), odd);
}

#[tokio::test(start_paused = true)]
async fn a_failing_source_is_not_asked_by_every_request() {
    let source = Scripted::new(&[Err(TokenError::Denied)]);
    let refresher = refresher(&source);
    for _ in 0..100 {
        assert_eq!(
            refresher.token(soon()).await.unwrap_err(),
            TokenError::Denied
        );
    }
    assert_eq!(source.calls(), 1);
}
