use std::sync::Mutex;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use tokio::time::{advance, sleep};

use super::*;
use crate::oci::RepositoryName;

const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
const GOOD: &str = "good";
/// How long ECR takes to answer.
const TAKES: Duration = Duration::from_millis(20);

/// An ECR that takes passwords which begin with [`GOOD`], lets their bearers read `team/app`, and
/// answers nothing while it is away.
#[derive(Default)]
struct Ecr {
    asked: Mutex<Vec<String>>,
    is_away: Mutex<bool>,
    allows: Mutex<Option<Verdict>>,
}

impl Ecr {
    fn asked(&self) -> usize {
        self.asked.lock().expect("no panic").len()
    }
}

impl Verdicts for Ecr {
    fn takes_tokens(&self, upstream: &str) -> bool {
        upstream == "prod"
    }

    fn ask<'a>(&'a self, token: &'a ClientToken, question: Question<'a>) -> BoxFuture<'a, Verdict> {
        let said = format!("{question:?}");
        self.asked.lock().expect("no panic").push(said);
        let verdict = match question {
            _ if *self.is_away.lock().expect("no panic") => Verdict::Unknown,
            _ if !token.password.starts_with(GOOD) => Verdict::Invalid,
            Question::Login => Verdict::Allowed,
            Question::Manifest(repo, _) | Question::Blob(repo, _) | Question::BlobHead(repo, _) => {
                let allows = *self.allows.lock().expect("no panic");
                match repo.repository.as_str() {
                    "team/app" => allows.unwrap_or(Verdict::Allowed),
                    _ => Verdict::Forbidden,
                }
            }
        };
        async move {
            sleep(TAKES).await;
            verdict
        }
        .boxed()
    }
}

fn tokens() -> (Tokens, Arc<Ecr>) {
    let ecr = Arc::new(Ecr::default());
    let tokens = Tokens::new(Arc::clone(&ecr) as _, [7; 32], Questions::default());
    (tokens, ecr)
}

async fn login(tokens: &Tokens, password: &str) -> Result<ClientToken, Denied> {
    tokens.identify(password.to_owned(), HERE).await
}

async fn decide(
    tokens: &Tokens,
    token: &ClientToken,
    upstream: &str,
    repository: &str,
    (action, content): (Action, Content<'_>),
) -> Result<(), Denied> {
    let repository: RepositoryName = repository.parse().expect("a name");
    let repo = RepoKey {
        upstream: upstream.into(),
        repository: repository.clone(),
    };
    let wanted = Wanted {
        repository: &repository,
        upstream,
        repo: Some(&repo),
        action,
        content,
    };
    tokens.decide(token, &wanted, HERE).await
}

fn blob() -> (Action, Content<'static>) {
    (Action::Pull, Content::Blob(Digest::of(b"")))
}

#[tokio::test(start_paused = true)]
async fn a_token_alone_gives_nothing() {
    let (tokens, _) = tokens();
    let token = login(&tokens, GOOD).await.expect("it is good");
    let tag: Reference = "v1".parse().expect("a tag");
    let manifest = (Action::Pull, Content::Manifest(&tag));
    for what in [
        manifest,
        blob(),
        (Action::Pull, Content::Referrers(Digest::of(b""))),
    ] {
        let on = |upstream, repository| decide(&tokens, &token, upstream, repository, what);
        assert_eq!(on("prod", "team/app").await, Ok(()));
        assert_eq!(on("prod", "team/other").await, Err(Denied::Forbidden));
        // Another registry does not know the token, so it is not shown to it.
        assert_eq!(on("hub", "team/app").await, Err(Denied::Forbidden));
    }
    let nowhere = Wanted {
        repository: &"team/app".parse().expect("a name"),
        upstream: "prod",
        repo: None,
        action: Action::Pull,
        content: Content::Uncached,
    };
    let decided = tokens.decide(&token, &nowhere, HERE).await;
    assert_eq!(decided, Err(Denied::Forbidden));
}

#[tokio::test(start_paused = true)]
async fn what_is_not_cached_is_left_to_upstream_and_not_asked_before() {
    let (tokens, ecr) = tokens();
    let token = login(&tokens, GOOD).await.expect("it is good");
    for action in [Action::Push, Action::Delete, Action::Pull] {
        let what = (action, Content::Uncached);
        assert_eq!(decide(&tokens, &token, "prod", "any", what).await, Ok(()));
        let elsewhere = decide(&tokens, &token, "hub", "any", what).await;
        assert_eq!(elsewhere, Err(Denied::Forbidden));
    }
    assert_eq!(ecr.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn equal_questions_are_asked_once_a_minute_counted_from_the_question() {
    let (tokens, ecr) = tokens();
    let logins = join_all((0..100).map(|_| login(&tokens, GOOD))).await;
    assert!(logins.iter().all(Result::is_ok));
    let token = logins[0].clone().expect("it is good");
    assert_eq!(ecr.asked(), 1);
    let ask = || decide(&tokens, &token, "prod", "team/app", blob());
    assert!(join_all((0..100).map(|_| ask())).await.contains(&Ok(())));
    assert_eq!(ecr.asked(), 2);
    *ecr.allows.lock().expect("no panic") = Some(Verdict::Forbidden);
    advance(BELIEVED - 2 * TAKES).await;
    assert_eq!((ask().await, ecr.asked()), (Ok(()), 2));
    advance(TAKES).await;
    assert_eq!((ask().await, ecr.asked()), (Err(Denied::Forbidden), 3));
    // A no is remembered, too, and for as long.
    assert_eq!((ask().await, ecr.asked()), (Err(Denied::Forbidden), 3));
    advance(BELIEVED).await;
    *ecr.allows.lock().expect("no panic") = Some(Verdict::Invalid);
    assert_eq!(ask().await, Err(Denied::Unauthenticated));
}

#[tokio::test(start_paused = true)]
async fn no_answer_is_no_verdict_and_is_not_remembered() {
    let (tokens, ecr) = tokens();
    let token = login(&tokens, GOOD).await.expect("it is good");
    *ecr.is_away.lock().expect("no panic") = true;
    let ask = || decide(&tokens, &token, "prod", "team/app", blob());
    // Those who wait together are told together.
    let told = join_all((0..50).map(|_| ask())).await;
    assert_eq!(told, vec![Err(Denied::Undecided); 50]);
    assert_eq!(ecr.asked(), 2);
    *ecr.is_away.lock().expect("no panic") = false;
    assert_eq!(ask().await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn questions_wait_for_their_turn_and_nobody_for_long() {
    let (tokens, ecr) = tokens();
    // One client has a part of the queue, and everybody together a whole.
    let began = Instant::now();
    let passwords: Vec<_> = (0..100).map(|n| format!("{GOOD} {n}")).collect();
    let logins = join_all(passwords.iter().map(|p| login(&tokens, p))).await;
    let busy = logins.iter().filter(|l| **l == Err(Denied::Busy)).count();
    assert_eq!(busy, 100 - MAX_WAITING_FROM_ONE);
    assert_eq!(ecr.asked(), MAX_WAITING_FROM_ONE);
    let rounds = MAX_WAITING_FROM_ONE.div_ceil(MAX_ASKED);
    assert_eq!(began.elapsed(), TAKES * u32::try_from(rounds).expect("few"));
    assert!(tokens.from_one.is_empty());

    let all = u32::try_from(MAX_ASKED).expect("few");
    let _held = tokens.running.acquire_many(all).await;
    let began = Instant::now();
    let late = login(&tokens, "good and late").await;
    assert_eq!((late, began.elapsed()), (Err(Denied::Undecided), PATIENCE));
}

#[tokio::test(start_paused = true)]
async fn who_leaves_does_not_take_the_answer_along() {
    let (tokens, ecr) = tokens();
    {
        let first = login(&tokens, GOOD);
        tokio::pin!(first);
        assert!(first.as_mut().now_or_never().is_none());
    }
    assert!(login(&tokens, GOOD).await.is_ok());
    assert_eq!(ecr.asked(), 2);
    assert!(tokens.from_one.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_client_of_many_bad_tokens_waits_and_others_do_not() {
    let (tokens, ecr) = tokens();
    let known = login(&tokens, GOOD).await.expect("it is good");
    for guess in 0..MAX_BAD_TOKENS {
        let guess = login(&tokens, &format!("bad {guess}")).await;
        assert_eq!(guess, Err(Denied::Unauthenticated));
    }
    let asked = ecr.asked();
    assert_eq!(login(&tokens, "bad").await, Err(Denied::Busy));
    assert_eq!(login(&tokens, "good, too").await, Err(Denied::Busy));
    assert_eq!(login(&tokens, "bad 3").await, Err(Denied::Unauthenticated));
    assert_eq!(ecr.asked(), asked);
    // What is known, and what the bearers of known tokens want, goes on.
    assert_eq!(login(&tokens, GOOD).await, Ok(known.clone()));
    assert_eq!(
        decide(&tokens, &known, "prod", "team/app", blob()).await,
        Ok(())
    );
    let elsewhere = "192.0.2.1".parse().expect("an address");
    let other = tokens.identify("good, too".to_owned(), elsewhere).await;
    assert!(other.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_stranger_with_a_good_token_tries_few_repositories() {
    let (tokens, ecr) = tokens();
    let stranger = login(&tokens, GOOD).await.expect("it is good");
    let ask = async |name: &str| decide(&tokens, &stranger, "prod", name, blob()).await;
    assert_eq!(ask("team/app").await, Ok(()));
    for guess in 0..MAX_FORBIDDEN {
        assert_eq!(ask(&format!("guess/{guess}")).await, Err(Denied::Forbidden));
    }
    let asked = ecr.asked();
    assert_eq!(ask("guess/more").await, Err(Denied::Busy));
    assert_eq!(ask("guess/3").await, Err(Denied::Forbidden));
    assert_eq!(ask("team/app").await, Ok(()));
    assert_eq!(ecr.asked(), asked);
}

#[test]
fn a_token_does_not_print_and_becomes_what_ecr_takes() {
    let token = ClientToken {
        password: "canary".into(),
        hash: [0; 32],
    };
    let authorization = token.authorization();
    assert_eq!(authorization, "Basic QVdTOmNhbmFyeQ==");
    let printed = format!("{token:?} {authorization:?}");
    assert!(
        !printed.contains("canary") && !printed.contains("QVdT"),
        "{printed}"
    );
}
