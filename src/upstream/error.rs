//! Why a registry gave us no content, as a closed list.
//!
//! Every value here can be shown to an operator and carried to many waiting requests: cheap to clone,
//! and without any URL, storage host, credential or text of the upstream. What an upstream said is
//! logged where it was heard, at the request.

use std::time::Duration;

use super::told::Told;

/// Why an upstream request has no useful answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    /// The registry says that it does not hold it.
    #[error("upstream does not hold this {0}")]
    Absent(Absent),
    /// The registry refuses the proxy's own identity, for another reason than an expired token.
    #[error("upstream refuses the proxy's own identity")]
    Refused,
    /// The registry does not offer this part of the API.
    #[error("upstream does not offer this")]
    Unsupported,
    /// The registry rejects our credentials, freshly made ones too.
    #[error("upstream rejects the proxy's credentials")]
    BadCredentials,
    /// There is no valid token, and none could be obtained in time.
    #[error("no upstream token: {0}")]
    NoToken(TokenError),
    /// The registry throttles us, and went on for as long as a request may be held back.
    #[error("upstream throttles, asks for {} s", retry_after.as_secs())]
    Throttled {
        /// When to try again.
        retry_after: Duration,
    },
    /// The registry fails: the last status after all attempts.
    #[error("upstream fails with status {status}")]
    Failing {
        /// One of 500 to 599; 429 of storage, which has no gate.
        status: u16,
    },
    /// No connection.
    #[error("upstream is unreachable: {0}")]
    Unreachable(Unreachable),
    /// It is known not to answer, so it was not asked.
    #[error("upstream does not answer for now: {0}")]
    Away(Box<UpstreamError>),
    /// The operator wants nothing asked.
    #[error("upstream is not asked: offline by configuration")]
    Offline,
    /// No upstream of that name is configured any more.
    #[error("its upstream is not configured any more")]
    Unconfigured,
    /// A deadline passed.
    #[error("upstream is too slow: {0}")]
    TooSlow(Deadline),
    /// The answer is wrong, or leads where we do not go.
    #[error("upstream is wrong: {0}")]
    Wrong(Wrong),
    /// The body ended before its declared length.
    #[error("upstream ended the body early")]
    Truncated,
    /// The body goes on after its declared length.
    #[error("upstream sent more than it declared")]
    TooMuch,
    /// Not the content that an earlier part came from.
    #[error("the content changed upstream between two parts")]
    ContentChanged,
    /// The whole instead of the part that was asked.
    #[error("upstream ignored the range")]
    IgnoredRange,
    /// A push is refused, in the registry's own words as far as others may read them.
    #[error("upstream refuses: {}: {}", .0.code, .0.message)]
    Told(Told),
}

/// What a registry does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    /// The tag or manifest.
    Manifest,
    /// The blob.
    Blob,
    /// The whole repository.
    Repository,
}

/// Why there is no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreachable {
    /// The name does not resolve.
    Dns,
    /// Nothing accepts the connection.
    Connect,
    /// The connection ended during the TLS handshake.
    Handshake,
    /// The connection broke before an answer came.
    Broken,
    /// The operator's own proxy on the way out cannot be reached, or makes no connection.
    Proxy,
    /// That proxy wants another login.
    ProxyLogin,
}

/// Which deadline passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deadline {
    /// A free connection slot, or what else goes before connecting.
    Slot,
    /// Token and connection together.
    Connect,
    /// The head of the answer.
    FirstByte,
    /// The next part of the body.
    Progress,
}

/// What is wrong with an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// The certificate or the TLS protocol.
    BadTls,
    /// A page for people, as from a network that wants a login.
    Intercepted,
    /// A redirect that is not followed.
    Redirect(RefusedRedirect),
    /// A challenge whose realm is not asked for a token.
    Realm(RefusedRealm),
    /// Framing, headers or structure.
    Malformed,
    /// Another digest than the one asked for or declared.
    DigestMismatch,
    /// Beyond our limit for a buffered answer.
    TooLarge,
    /// An encoding we did not ask for.
    Encoded,
    /// Not what a registry says: a page, an error in place of content, a media type that lies.
    NotAManifest,
    /// A status that the request cannot have.
    Status(u16),
    /// A name in an allowed list that leads into a network it may not.
    ForbiddenAddress,
    /// An upload that is to go on at another host.
    UploadElsewhere,
}

/// Why a redirect is not followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedRedirect {
    /// No `Location`, several, or one that is not an address.
    NoLocation,
    /// Plain HTTP.
    NotHttps,
    /// User information in the address.
    UserInfo,
    /// A host that blobs of this registry do not live at.
    Host,
    /// Another port than the host's own.
    Port,
    /// Too many in a row.
    TooMany,
    /// The storage goes on refusing its own addresses.
    Expired,
}

/// Why a realm is not asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedRealm {
    /// Not an absolute address, or one with user information.
    NotAnAddress,
    /// Plain HTTP.
    NotHttps,
    /// A host that does not speak for this registry.
    Host,
}

/// Why there is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// None was obtained yet, and the caller's time is up.
    #[error("not obtained in time")]
    Pending,
    /// The token service did not answer within its own deadline.
    #[error("the token service does not answer in time")]
    TooSlow,
    /// The token service cannot be reached.
    #[error("the token service is unreachable")]
    Unreachable,
    /// No AWS credentials, or none that work.
    #[error("no usable AWS credentials")]
    NoCredentials,
    /// The identity may not obtain a token.
    #[error("the identity may not obtain a token")]
    Denied,
    /// The token service knows who we are, and grants nothing of what was asked for.
    #[error("the token service grants nothing here")]
    NotGranted,
    /// The token service throttles.
    #[error("the token service throttles")]
    Throttled,
    /// The token service fails.
    #[error("the token service fails")]
    Failing,
    /// Somebody without its certificate, a page for people, or a redirect.
    #[error("something else answers in the token service's place")]
    Intercepted,
    /// The answer holds no usable token.
    #[error("the token service answers oddly: {0}")]
    Odd(OddToken),
}

/// What is odd about a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OddToken {
    /// No token in the answer.
    Missing,
    /// Not of the form that a token has.
    Malformed,
    /// Expired before it arrived.
    Expired,
    /// Meant for another region's registry.
    OtherRegion,
}

impl TokenError {
    /// True where nobody answered, so that the way there may be what is missing.
    pub fn is_of_the_link(self) -> bool {
        matches!(
            self,
            Self::Pending | Self::TooSlow | Self::Unreachable | Self::Intercepted
        )
    }
}

impl UpstreamError {
    /// True when the upstream could not answer: what is cached may be served instead. Whoever cannot show
    /// the registry's certificate, answers with a page, or sends us where the registry does not, is not the
    /// registry, so that has not answered either.
    pub fn cannot_answer(&self) -> bool {
        match self {
            Self::NoToken(_)
            | Self::BadCredentials
            | Self::Throttled { .. }
            | Self::Failing { .. }
            | Self::Unreachable(_)
            | Self::Away(_)
            | Self::Offline
            | Self::Unconfigured
            | Self::TooSlow(_)
            | Self::Wrong(Wrong::BadTls | Wrong::Intercepted | Wrong::Redirect(_))
            | Self::Truncated => true,
            Self::Absent(_)
            | Self::Refused
            | Self::Unsupported
            | Self::Wrong(_)
            | Self::TooMuch
            | Self::ContentChanged
            | Self::IgnoredRange
            | Self::Told(_) => false,
        }
    }

    /// True when the upstream said no: nothing cached may paper over it.
    pub fn says_no(&self) -> bool {
        match self {
            Self::Absent(_) | Self::Refused => true,
            Self::Unsupported
            | Self::BadCredentials
            | Self::NoToken(_)
            | Self::Throttled { .. }
            | Self::Failing { .. }
            | Self::Unreachable(_)
            | Self::Away(_)
            | Self::Offline
            | Self::Unconfigured
            | Self::TooSlow(_)
            | Self::Wrong(_)
            | Self::Truncated
            | Self::TooMuch
            | Self::ContentChanged
            | Self::IgnoredRange
            | Self::Told(_) => false,
        }
    }

    /// True when the same request may well succeed later; a body may be continued from where it broke.
    pub fn retryable(&self) -> bool {
        match self {
            Self::NoToken(_)
            | Self::Throttled { .. }
            | Self::Failing { .. }
            | Self::Unreachable(_)
            | Self::Away(_)
            | Self::TooSlow(_)
            | Self::Truncated => true,
            Self::Absent(_)
            | Self::Refused
            | Self::Unsupported
            | Self::Offline
            | Self::Unconfigured
            | Self::BadCredentials
            | Self::Wrong(_)
            | Self::TooMuch
            | Self::ContentChanged
            | Self::IgnoredRange
            | Self::Told(_) => false,
        }
    }
}

/// Gives a closed enum its words.
macro_rules! words {
    ($type:ty { $($pattern:pat => $words:literal),+ $(,)? }) => {
        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(match self { $($pattern => $words),+ })
            }
        }
    };
}

words!(Absent {
    Self::Manifest => "manifest",
    Self::Blob => "blob",
    Self::Repository => "repository",
});
words!(Unreachable {
    Self::Dns => "its name does not resolve",
    Self::Connect => "nothing accepts the connection",
    Self::Handshake => "the TLS handshake broke off",
    Self::Broken => "the connection broke before an answer",
    Self::Proxy => "the egress proxy makes no connection",
    Self::ProxyLogin => "the egress proxy wants another login",
});
words!(Deadline {
    Self::Slot => "no free connection in time",
    Self::Connect => "no token and connection in time",
    Self::FirstByte => "no answer in time",
    Self::Progress => "the body stalled",
});
words!(RefusedRedirect {
    Self::NoLocation => "redirect without a usable location",
    Self::NotHttps => "redirect to plain HTTP",
    Self::UserInfo => "redirect with user information",
    Self::Host => "redirect to a host that is not listed",
    Self::Port => "redirect to an unexpected port",
    Self::TooMany => "too many redirects",
    Self::Expired => "storage refuses the addresses it is asked by",
});
words!(RefusedRealm {
    Self::NotAnAddress => "challenge without a usable realm",
    Self::NotHttps => "challenge with a realm of plain HTTP",
    Self::Host => "challenge with a realm of another host",
});
words!(OddToken {
    Self::Missing => "no token in it",
    Self::Malformed => "not a token",
    Self::Expired => "expired already",
    Self::OtherRegion => "for another region",
});

impl std::fmt::Display for Wrong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::BadTls => f.write_str("TLS is not trusted"),
            Self::Intercepted => f.write_str("a page answers in its place"),
            Self::Redirect(reason) => reason.fmt(f),
            Self::Realm(reason) => reason.fmt(f),
            Self::Malformed => f.write_str("malformed answer"),
            Self::DigestMismatch => f.write_str("the content has another digest"),
            Self::TooLarge => f.write_str("the answer is too large"),
            Self::Encoded => f.write_str("the content is encoded"),
            Self::NotAManifest => f.write_str("the answer is not a manifest"),
            Self::Status(status) => write!(f, "unexpected status {status}"),
            Self::ForbiddenAddress => f.write_str("a host resolves into a forbidden network"),
            Self::UploadElsewhere => f.write_str("an upload that is to go on at another host"),
        }
    }
}
