//! Users are known by the user file as it is now, at a bounded cost: a pull costs one bcrypt, who guesses
//! locks nobody out, and a change of the file is felt by the next request.

mod support;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ecr_proxy::simulator::Simulator;
use rustix::process::Signal;
use support::blobs::{metric, until};
use support::image::{REPOSITORY, TAG};
use support::proxy::Builder;
use support::users::{basic, login, user_line};
use support::{Client, Connection, Proxy, Stopwatch, image, within};
use tokio::net::TcpSocket;
use tokio::task::JoinSet;

const PASSWORD: &str = "correct horse battery staple";
const CHECKS: &str = "ecr_proxy_password_checks_total";

async fn before(users: &str) -> (Simulator, Builder) {
    let simulator = Simulator::builder().start().await.expect("a simulator");
    image::push(&simulator);
    let builder = Proxy::builder().simulator(&simulator).users(users);
    (simulator, builder)
}

fn manifest() -> String {
    format!("/v2/{REPOSITORY}/manifests/{TAG}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_of_fifty_layers_costs_one_bcrypt() {
    let (_simulator, builder) = before(&user_line("ci", PASSWORD)).await;
    let proxy = builder.start();
    let ci = login(proxy.client(), "ci", PASSWORD);
    // All at once, and each on a connection of its own.
    let mut pulls = JoinSet::new();
    for _ in 0..50 {
        let ci = ci.clone();
        pulls.spawn(async move { ci.get(&manifest()).await.status });
    }
    assert_eq!(pulls.join_all().await, [200; 50]);
    assert_eq!(metric(&proxy, CHECKS, &[]).await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn s19_an_unknown_user_is_answered_like_a_known_one_at_the_same_cost() {
    let (_simulator, builder) = before(&user_line("ci", PASSWORD)).await;
    let proxy = builder.start();
    let mut answers = Vec::new();
    for (index, (user, password)) in [
        ("ci", "wrong"),
        ("nobody", "wrong"),
        ("nobody", PASSWORD),
        ("CI", PASSWORD),
    ]
    .into_iter()
    .enumerate()
    {
        let answer = login(proxy.client(), user, password).get("/v2/").await;
        let id = answer.header("x-request-id").expect("an id").to_owned();
        let mut headers = answer.head.headers.clone();
        headers.retain(|(name, _)| name != "x-request-id" && name != "date");
        answers.push((answer.status, headers, answer.text().replace(&id, "ID")));
        assert_eq!(
            metric(&proxy, CHECKS, &[]).await,
            index as f64 + 1.0,
            "{user}"
        );
    }
    assert_eq!(answers[0].0, 401);
    answers.dedup();
    assert_eq!(answers.len(), 1, "{answers:#?}");
}

/// How likely one drawn from `these` is larger than one drawn from `those`: a half where they cannot be told
/// apart (the rank statistic of Mann and Whitney, as a share of all pairs).
fn rank(these: &[Duration], those: &[Duration]) -> f64 {
    let mut sorted = those.to_vec();
    sorted.sort_unstable();
    let below = |this: &Duration| {
        let smaller = sorted.partition_point(|that| that < this);
        let equal = sorted.partition_point(|that| that <= this) - smaller;
        smaller as f64 + equal as f64 / 2.0
    };
    let sum: f64 = these.iter().map(below).sum();
    sum / (these.len() * those.len()) as f64
}

/// The hashes of the file are of the least cost: little covers up what else a login does. What the machine does
/// besides goes under in more of them, and a difference that is there comes out.
#[tokio::test(flavor = "multi_thread")]
async fn s19_a_thousand_logins_each_do_not_tell_known_users_from_unknown_ones() {
    const LOGINS: usize = 1000;
    const ROUNDS: usize = 5;
    let hash = |password| bcrypt::hash(password, 4).expect("a hash");
    let lines: Vec<_> = (0..20)
        .map(|n| format!("user{n}:{}\n", hash(PASSWORD)))
        .collect();
    let (_simulator, builder) = before(&lines.concat()).await;
    let proxy = builder.start();
    let mut connection = Connection::plain(proxy.http()).await;
    let mut login = async |user: &str, password: &str| {
        let authorization = basic(user, password);
        let headers = [("authorization", authorization.as_str())];
        let began = Instant::now();
        let sent = connection.request("GET", "/v2/", &headers).await;
        sent.expect("sent");
        let answer = connection.answer("GET").await.expect("an answer");
        assert_eq!(answer.status, 401);
        began.elapsed()
    };
    let mut order = fastrand::Rng::with_seed(19);
    let (mut known, mut unknown) = (Vec::new(), Vec::new());
    let mut seen = Vec::new();
    for round in 1..=ROUNDS {
        for n in 0..LOGINS {
            // Side by side, and neither always first.
            let mut pair = [("user", &mut known), ("resu", &mut unknown)];
            if order.bool() {
                pair.reverse();
            }
            for (name, times) in pair {
                let guess = format!("guess {round} {n}");
                times.push(login(&format!("{name}{}", n % 20), &guess).await);
            }
        }
        let checks = metric(&proxy, CHECKS, &[]).await;
        assert_eq!(checks, (2 * LOGINS * round) as f64);
        // Of equal distributions it is off by more than 0.04 in one first round of five hundred.
        let rank = rank(&known, &unknown);
        let ratio = median(&mut known) / median(&mut unknown);
        seen.push((rank, ratio));
        if (rank - 0.5).abs() < 0.04 && (0.95..1.05).contains(&ratio) {
            return;
        }
    }
    panic!("known users are told from unknown ones: rank and ratio of medians {seen:?}");
}

fn median(times: &mut [Duration]) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64()
}

/// A login on a connection from this address of loopback.
async fn login_from(address: Ipv4Addr, to: SocketAddr, authorization: &str) -> u16 {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket
        .bind((address, 0).into())
        .expect("127.0.0.0/8 is ours");
    let stream = within("a connection", socket.connect(to)).await;
    let mut connection = Connection::over(stream.expect("a listener"));
    let headers = [("authorization", authorization)];
    connection
        .request("GET", "/v2/", &headers)
        .await
        .expect("sent");
    connection.answer("GET").await.expect("an answer").status
}

#[tokio::test(flavor = "multi_thread")]
async fn s20_who_guesses_passwords_locks_nobody_else_out() {
    let lines = user_line("ci", PASSWORD) + &user_line("late", PASSWORD);
    let (_simulator, builder) = before(&lines).await;
    let proxy = builder.start();
    let ci = login(proxy.client(), "ci", PASSWORD);
    assert_eq!(ci.get(&manifest()).await.status, 200);

    let (attacker, other) = (Ipv4Addr::new(127, 0, 0, 66), Ipv4Addr::new(127, 0, 0, 7));
    let to = proxy.http();
    let mut guesses = JoinSet::new();
    for guess in 0..500 {
        let authorization = basic("late", &format!("guess {guess}"));
        guesses.spawn(async move { login_from(attacker, to, &authorization).await });
    }
    until("guesses are refused", async || {
        metric(&proxy, "ecr_proxy_denied_total", &["reason=\"busy\""]).await > 0.0
    })
    .await;
    // Who is remembered waits for nothing, and who is not has a place in the queue.
    let began = Stopwatch::start();
    assert_eq!(ci.get(&manifest()).await.status, 200);
    assert!(began.took() < Duration::from_secs(2), "{:?}", began.took());
    assert_eq!(login_from(other, to, &basic("late", PASSWORD)).await, 200);

    let mut answers = guesses.join_all().await;
    answers.sort_unstable();
    let refused = answers.iter().filter(|status| **status == 429).count();
    assert!(answers.iter().all(|status| [401, 429].contains(status)));
    assert!(refused > 300, "{refused} of 500 were told to come back");
}

/// Whether `login` is let in on a connection of its own.
async fn status(proxy: &Proxy, user: &str, password: &str) -> u16 {
    login(proxy.client(), user, password)
        .get("/v2/")
        .await
        .status
}

fn replace(file: &Path, text: &str) {
    let new = file.with_extension("new");
    fs::write(&new, text).expect("a file");
    fs::rename(&new, file).expect("a rename");
}

#[tokio::test(flavor = "multi_thread")]
async fn s04_k09_a_changed_user_file_is_felt_by_the_next_request_of_an_open_connection() {
    let (ci, dev) = (user_line("ci", PASSWORD), user_line("dev", PASSWORD));
    let (_simulator, builder) = before(&(ci.clone() + &dev)).await;
    let proxy = builder.env("RUST_LOG", "trace").start();
    let file = proxy.users_file();
    let authorization = basic("ci", PASSWORD);
    let headers = [("authorization", authorization.as_str())];
    let mut open = Connection::plain(proxy.http()).await;
    let mut ask = async |path: &str| {
        open.request("GET", path, &headers).await.expect("sent");
        open.answer("GET").await.expect("an answer").status
    };
    assert_eq!(ask(&manifest()).await, 200);
    assert_eq!(status(&proxy, "dev", PASSWORD).await, 200);

    // A changed password, though the old one is remembered.
    replace(&file, &(user_line("ci", "changed") + &dev));
    until("the new password counts", async || {
        status(&proxy, "ci", "changed").await == 200
    })
    .await;
    assert_eq!(ask(&manifest()).await, 401);
    assert_eq!(status(&proxy, "dev", PASSWORD).await, 200);

    // Back, by a file that is rewritten in place.
    fs::write(&file, ci + &dev).expect("a file");
    until("the old password counts again", async || {
        status(&proxy, "ci", PASSWORD).await == 200
    })
    .await;
    assert_eq!(ask(&manifest()).await, 200);

    // Out, asked for by a signal.
    replace(&file, &dev);
    proxy.signal(Signal::HUP);
    until("ci is out", async || {
        status(&proxy, "ci", PASSWORD).await == 401
    })
    .await;
    assert_eq!(ask(&manifest()).await, 401, "content that was read before");
    assert_eq!(status(&proxy, "dev", PASSWORD).await, 200);
    proxy.assert_no_secrets(&[PASSWORD.to_owned()]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn k09_the_last_good_users_stay_and_it_is_told_once() {
    let (ci, dev) = (user_line("ci", PASSWORD), user_line("dev", PASSWORD));
    let (_simulator, builder) = before(&ci).await;
    let proxy = builder.start();
    let file = proxy.users_file();
    let refused = async || metric(&proxy, "ecr_proxy_reload_refused", &["what=\"users\""]).await;
    assert_eq!(status(&proxy, "ci", PASSWORD).await, 200);

    let torn = &dev[..dev.len() / 2];
    for (broken, why) in [
        (Some(ci.clone() + torn), "damaged"),
        (Some(ci.clone() + "dev:plain"), "not a bcrypt hash"),
        (Some("\u{0}\u{0}\u{0}".to_owned()), "name:hash"),
        (Some(String::new()), "is empty"),
        (None, "cannot be read"),
    ] {
        match &broken {
            Some(text) => replace(&file, text),
            None => fs::remove_file(&file).expect("a file"),
        }
        let told = proxy.log_until(why, |event| {
            event.message().contains("cannot be reloaded") && event.line.contains(why)
        });
        let told = told.await;
        assert_eq!(told.level(), "ERROR", "{}", told.line);
        assert_eq!(refused().await, 1.0, "{why}");
        assert_eq!(status(&proxy, "ci", PASSWORD).await, 200, "{why}");
        assert_eq!(status(&proxy, "dev", PASSWORD).await, 401, "{why}");
        let ready = Client::operator(proxy.admin()).get("/readyz").await;
        assert_eq!(ready.status, 200);
        assert!(ready.text().contains("users"), "{}", ready.text());
        let strict = Client::operator(proxy.admin()).get("/readyz?strict").await;
        assert_eq!(strict.status, 503);
    }
    // It is read again and again while it is broken, and told once for each way.
    let lines = proxy.logs();
    let told = lines
        .iter()
        .filter(|event| event.message().contains("cannot be reloaded"));
    assert_eq!(told.count(), 5);
    assert!(
        lines.iter().all(|event| !event.line.contains("$2b$10$")),
        "a hash was logged"
    );

    replace(&file, &(ci + &dev));
    until("it is mended", async || {
        status(&proxy, "dev", PASSWORD).await == 200
    })
    .await;
    until("that is told", async || refused().await == 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn k09_a_hundred_thousand_users_and_a_signal_with_a_change_at_once() {
    let (_simulator, builder) = before(&user_line("ci", PASSWORD)).await;
    let proxy = Arc::new(builder.start());
    let line = user_line("user", PASSWORD);
    let hash = line.trim_end().split_once(':').expect("a line").1;
    let many: String = (0..100_000).map(|n| format!("user{n}:{hash}\n")).collect();
    replace(&proxy.users_file(), &many);
    proxy.signal(Signal::HUP);
    until("all are known", async || {
        status(&proxy, "user99999", PASSWORD).await == 200
    })
    .await;
    assert_eq!(status(&proxy, "ci", PASSWORD).await, 401);
    assert_eq!(status(&proxy, "user0", PASSWORD).await, 200);
    assert!(proxy.logs().iter().all(|event| event.level() != "ERROR"));
}
