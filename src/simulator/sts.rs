//! STS, on the API's listener: temporary keys for a role, in the query protocol (forms in, XML out).
//!
//! A role is called after the predefined principals: `role/pull-only` is the role of
//! `assumed-role/pull-only/…`.

use std::collections::HashMap;

use super::connection::Asked;
use super::principal::{Credentials, Principal, TemporaryKeys};
use super::reply::Reply;
use super::shelf::Identity;

const XMLNS: &str = "https://sts.amazonaws.com/doc/2011-06-15/";

/// True for a request of the query protocol, which names its operation in the body.
pub(super) fn is_meant(asked: &Asked) -> bool {
    asked
        .header("content-type")
        .is_some_and(|kind| kind.starts_with("application/x-www-form-urlencoded"))
}

/// Answers `AssumeRoleWithWebIdentity`, whose caller has a web identity token and no keys, and `AssumeRole`,
/// whose caller is `signer`.
pub(super) fn answer(
    asked: &Asked,
    signer: Option<&Principal>,
    identity: &Identity,
    credentials: &Credentials,
) -> Reply {
    let form: HashMap<_, _> = url::form_urlencoded::parse(&asked.body).collect();
    let field = |name: &str| form.get(name).map(|value| &**value).unwrap_or_default();
    let action = field("Action");
    if !["AssumeRole", "AssumeRoleWithWebIdentity"].contains(&action) {
        return refusal(400, "InvalidAction", "Could not find operation");
    }
    let prefix = format!("arn:aws:iam::{}:role/", identity.account);
    let Some(role) = field("RoleArn").strip_prefix(&prefix) else {
        return refusal(400, "ValidationError", "Request ARN is invalid");
    };
    let is_trusted = match action {
        "AssumeRole" => {
            let Some(signer) = signer else {
                let message = "The security token included in the request is invalid";
                return refusal(403, "InvalidClientTokenId", message);
            };
            let external_id = form.get("ExternalId").map(|id| &**id);
            credentials.trusts(role, &signer.access_key_id, external_id)
        }
        _ if credentials.trusts_web_identity(field("WebIdentityToken")) => true,
        _ => {
            let message = "No OpenIDConnect provider found in your account for the token";
            return refusal(400, "InvalidIdentityToken", message);
        }
    };
    let keys = is_trusted.then(|| credentials.assume(role, field("RoleSessionName")));
    let Some(keys) = keys.flatten() else {
        let message = format!("Not authorized to perform sts:{action}");
        return refusal(403, "AccessDenied", &message);
    };
    let TemporaryKeys {
        access_key_id,
        secret_access_key,
        session_token,
        expires_at,
    } = keys;
    let expiration = humantime::format_rfc3339_seconds(expires_at);
    let session =
        identity.principal_arn(&format!("assumed-role/{role}/{}", field("RoleSessionName")));
    xml(
        200,
        format!(
            "<{action}Response xmlns=\"{XMLNS}\"><{action}Result>\
             <AssumedRoleUser><Arn>{session}</Arn><AssumedRoleId>{access_key_id}:session</AssumedRoleId>\
             </AssumedRoleUser><Credentials><AccessKeyId>{access_key_id}</AccessKeyId>\
             <SecretAccessKey>{secret_access_key}</SecretAccessKey>\
             <SessionToken>{session_token}</SessionToken><Expiration>{expiration}</Expiration>\
             </Credentials></{action}Result></{action}Response>"
        ),
    )
}

fn refusal(status: u16, code: &str, message: &str) -> Reply {
    xml(
        status,
        format!(
            "<ErrorResponse xmlns=\"{XMLNS}\"><Error><Type>Sender</Type><Code>{code}</Code>\
             <Message>{message}</Message></Error></ErrorResponse>"
        ),
    )
}

fn xml(status: u16, body: String) -> Reply {
    Reply::new(status, body.into_bytes()).with("content-type", "text/xml")
}
