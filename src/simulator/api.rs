//! The control plane: AWS JSON 1.1 with the operations that a proxy needs.
//!
//! Signatures are not checked; the access key id in the credential scope tells who asks.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use serde_json::{Value, json};

use super::connection::{Asked, Service};
use super::principal::{Action, Credentials, Principal, TokenReply, epoch};
use super::reply::Reply;
use super::shelf::{Repository, Shelf};
use super::sts;

const TARGET_PREFIX: &str = "AmazonEC2ContainerRegistry_V20150921.";
const PUBLIC_TARGET_PREFIX: &str = "SpencerFrontendService.";

pub(super) struct Api {
    pub(super) shelf: Arc<Shelf>,
    pub(super) credentials: Arc<Credentials>,
}

impl Service for Api {
    fn subject(&self, _: &str) -> (Option<String>, Option<String>) {
        (None, None)
    }

    fn answer(&self, asked: Asked) -> BoxFuture<'_, Reply> {
        Box::pin(async move {
            if sts::is_meant(&asked) {
                let signer = self.asker(&asked).ok();
                let identity = &self.shelf.identity;
                return sts::answer(&asked, signer.as_ref(), identity, &self.credentials);
            }
            match self.decide(&asked) {
                Ok(Some(value)) => Reply::new(200, value.to_string().into_bytes())
                    .with("content-type", "application/x-amz-json-1.1"),
                Ok(None) => std::future::pending().await,
                Err(refusal) => refusal,
            }
            .with("x-amzn-requestid", "00000000-5151-4242-8787-000000000000")
        })
    }

    fn expired(&self) -> Reply {
        refusal(
            403,
            "ExpiredTokenException",
            "The security token included in the request is expired",
        )
    }
}

impl Api {
    /// `None` is an answer that never comes.
    fn decide(&self, asked: &Asked) -> Result<Option<Value>, Reply> {
        let operation = asked
            .header("x-amz-target")
            .and_then(|target| {
                target.strip_prefix(match self.shelf.identity.is_public {
                    true => PUBLIC_TARGET_PREFIX,
                    false => TARGET_PREFIX,
                })
            })
            .filter(|_| asked.method == "POST")
            .ok_or_else(|| refusal(400, "UnknownOperationException", ""))?;
        let input: Value = serde_json::from_slice(&asked.body)
            .map_err(|_| refusal(400, "SerializationException", "the body is not JSON"))?;
        let principal = self.asker(asked)?;
        match operation {
            "GetAuthorizationToken" if self.shelf.identity.is_public => {
                self.demand(&principal, Action::GetAuthorizationToken, None)?;
                // The scope of the signature: its region is the only one that issues tokens.
                let authorization = asked.header("authorization").unwrap_or_default();
                if !authorization.contains("/us-east-1/ecr-public/") {
                    return Err(refusal(400, "UnsupportedCommandException", ""));
                }
                let issued = self.credentials.issue(&principal);
                Ok(Some(json!({"authorizationData": {
                    "authorizationToken": issued.authorization_token,
                    "expiresAt": epoch(issued.expires_at).as_secs_f64(),
                }})))
            }
            "GetAuthorizationToken" => self.token(&principal),
            "CreateRepository" => self.create_repository(&principal, &input).map(Some),
            "DescribeRepositories" => self.describe_repositories(&principal, &input).map(Some),
            "GetLifecyclePolicy" => self.lifecycle_policy(&principal, &input).map(Some),
            "PutLifecyclePolicy" => self.put_lifecycle_policy(&principal, &input).map(Some),
            _ => Err(refusal(400, "UnknownOperationException", "")),
        }
    }

    fn asker(&self, asked: &Asked) -> Result<Principal, Reply> {
        let authorization = asked.header("authorization").unwrap_or_default();
        let key = authorization
            .strip_prefix("AWS4-HMAC-SHA256 ")
            .and_then(|rest| rest.split_once("Credential="))
            .and_then(|(_, scope)| scope.split('/').next())
            .ok_or_else(|| {
                refusal(
                    403,
                    "MissingAuthenticationTokenException",
                    "Missing Authentication Token",
                )
            })?;
        let session = asked.header("x-amz-security-token");
        self.credentials.caller(key, session).ok_or_else(|| {
            refusal(
                403,
                "UnrecognizedClientException",
                "The security token included in the request is invalid.",
            )
        })
    }

    fn demand(
        &self,
        principal: &Principal,
        action: Action,
        repository: Option<&str>,
    ) -> Result<(), Reply> {
        if principal.may(action, repository) {
            return Ok(());
        }
        let identity = &self.shelf.identity;
        let user = identity.principal_arn(&principal.name);
        let resource = repository.map_or_else(|| "*".into(), |name| identity.repository_arn(name));
        Err(refusal(
            403,
            "AccessDeniedException",
            &format!(
                "User: {user} is not authorized to perform: ecr:{action:?} on resource: \
                 {resource} because no identity-based policy allows the ecr:{action:?} action"
            ),
        ))
    }

    fn token(&self, principal: &Principal) -> Result<Option<Value>, Reply> {
        self.demand(principal, Action::GetAuthorizationToken, None)?;
        let host = self.shelf.identity.registry_host();
        let answer = |token: &str, expires_at: SystemTime, host: &str| {
            json!({"authorizationData": [{
                "authorizationToken": token,
                "expiresAt": epoch(expires_at).as_secs_f64(),
                "proxyEndpoint": format!("https://{host}"),
            }]})
        };
        let issued = || self.credentials.issue(principal);
        Ok(Some(match self.credentials.reply() {
            TokenReply::Normal => {
                let token = issued();
                answer(&token.authorization_token, token.expires_at, &host)
            }
            TokenReply::OtherEndpoint => {
                let token = issued();
                let other = "999999999999.dkr.ecr.eu-west-1.amazonaws.com";
                answer(&token.authorization_token, token.expires_at, other)
            }
            TokenReply::PastExpiry => {
                let past = SystemTime::UNIX_EPOCH + Duration::from_secs(1_420_070_400);
                answer(&issued().authorization_token, past, &host)
            }
            TokenReply::NoExpiry => json!({"authorizationData": [{
                "authorizationToken": issued().authorization_token,
                "proxyEndpoint": format!("https://{host}"),
            }]}),
            TokenReply::NotBase64 => answer("§ not base64 §", issued().expires_at, &host),
            // base64 of `AWSpassword`
            TokenReply::NoColon => answer("QVdTcGFzc3dvcmQ=", issued().expires_at, &host),
            TokenReply::EmptyList => json!({"authorizationData": []}),
            TokenReply::Denied => {
                let nobody = Principal::denied(&principal.access_key_id);
                self.demand(&nobody, Action::GetAuthorizationToken, None)?;
                return Ok(None);
            }
            TokenReply::Throttled => {
                return Err(refusal(400, "ThrottlingException", "Rate exceeded"));
            }
            TokenReply::ServerError => return Err(refusal(500, "ServerException", "")),
            TokenReply::Hang => return Ok(None),
        }))
    }

    fn create_repository(&self, principal: &Principal, input: &Value) -> Result<Value, Reply> {
        let name = repository_name(input)?;
        self.demand(principal, Action::CreateRepository, Some(name))?;
        if input["tags"]
            .as_array()
            .is_some_and(|tags| !tags.is_empty())
        {
            self.demand(principal, Action::TagResource, Some(name))?;
        }
        if !is_repository_name(name) {
            return Err(refusal(
                400,
                "InvalidParameterException",
                "Invalid parameter at 'repositoryName' failed to satisfy constraint: 'must satisfy \
                 regular expression \
                 '(?:[a-z0-9]+(?:[._-][a-z0-9]+)*/)*[a-z0-9]+(?:[._-][a-z0-9]+)*''",
            ));
        }
        let account = &self.shelf.identity.account;
        if !self.shelf.create(name) {
            return Err(refusal(
                400,
                "RepositoryAlreadyExistsException",
                &format!(
                    "The repository with name '{name}' already exists in the registry with id \
                     '{account}'"
                ),
            ));
        }
        let described = self.shelf.change(name, |repository| {
            let mutability = input["imageTagMutability"].as_str();
            repository.immutable = mutability.is_some_and(|it| it.starts_with("IMMUTABLE"));
            let filters = input["imageTagMutabilityExclusionFilters"].as_array();
            let filters = filters.into_iter().flatten();
            let filters = filters.filter_map(|filter| filter["filter"].as_str());
            repository.exclusions = filters.map(str::to_owned).collect();
            repository.made_with = input.clone();
            self.describe(name, repository)
        });
        Ok(json!({"repository": described}))
    }

    fn describe_repositories(&self, principal: &Principal, input: &Value) -> Result<Value, Reply> {
        let asked: Option<Vec<String>> = input["repositoryNames"].as_array().map(|names| {
            let names = names.iter().filter_map(Value::as_str);
            names.map(str::to_owned).collect()
        });
        let mut described = Vec::new();
        for name in asked.unwrap_or_else(|| self.shelf.names()) {
            self.demand(principal, Action::DescribeRepositories, Some(&name))?;
            let repository = self.shelf.read(&name, |r| self.describe(&name, r));
            described.push(repository.ok_or_else(|| self.not_found(&name))?);
        }
        Ok(json!({"repositories": described}))
    }

    fn lifecycle_policy(&self, principal: &Principal, input: &Value) -> Result<Value, Reply> {
        let name = repository_name(input)?;
        self.demand(principal, Action::GetLifecyclePolicy, Some(name))?;
        let account = &self.shelf.identity.account;
        let policy = self.shelf.read(name, |r| r.lifecycle_policy.clone());
        let policy = policy.ok_or_else(|| self.not_found(name))?.ok_or_else(|| {
            let message = format!(
                "Lifecycle policy does not exist for the repository with name '{name}' in the \
                 registry with id '{account}'"
            );
            refusal(400, "LifecyclePolicyNotFoundException", &message)
        })?;
        Ok(json!({
            "registryId": account,
            "repositoryName": name,
            "lifecyclePolicyText": policy,
        }))
    }

    fn put_lifecycle_policy(&self, principal: &Principal, input: &Value) -> Result<Value, Reply> {
        let name = repository_name(input)?;
        self.demand(principal, Action::PutLifecyclePolicy, Some(name))?;
        let policy = input["lifecyclePolicyText"].as_str().unwrap_or_default();
        let rules = serde_json::from_str::<Value>(policy)
            .ok()
            .is_some_and(|policy| policy["rules"].is_array());
        if !rules || !(100..=30_720).contains(&policy.len()) {
            return Err(refusal(
                400,
                "InvalidParameterException",
                "Invalid parameter at 'LifecyclePolicyText' failed to satisfy constraint: \
                 'Lifecycle policy validation failure'",
            ));
        }
        self.shelf
            .change(name, |r| r.lifecycle_policy = Some(policy.to_owned()))
            .ok_or_else(|| self.not_found(name))?;
        Ok(json!({
            "registryId": self.shelf.identity.account,
            "repositoryName": name,
            "lifecyclePolicyText": policy,
        }))
    }

    fn describe(&self, name: &str, repository: &Repository) -> Value {
        let identity = &self.shelf.identity;
        let filters = repository.exclusions.iter();
        let filters = filters.map(|filter| json!({"filterType": "WILDCARD", "filter": filter}));
        let filters: Vec<Value> = filters.collect();
        let mutability = match (repository.immutable, filters.is_empty()) {
            (false, true) => "MUTABLE",
            (false, false) => "MUTABLE_WITH_EXCLUSION",
            (true, true) => "IMMUTABLE",
            (true, false) => "IMMUTABLE_WITH_EXCLUSION",
        };
        let or = |key: &str, usual: Value| match &repository.made_with[key] {
            Value::Null => usual,
            said => said.clone(),
        };
        json!({
            "repositoryArn": identity.repository_arn(name),
            "registryId": identity.account,
            "repositoryName": name,
            "repositoryUri": format!("{}/{name}", identity.registry_host()),
            "createdAt": epoch(repository.created).as_secs_f64(),
            "imageTagMutability": mutability,
            "imageTagMutabilityExclusionFilters": filters,
            "imageScanningConfiguration":
                or("imageScanningConfiguration", json!({"scanOnPush": false})),
            "encryptionConfiguration":
                or("encryptionConfiguration", json!({"encryptionType": "AES256"})),
        })
    }

    fn not_found(&self, name: &str) -> Reply {
        let account = &self.shelf.identity.account;
        refusal(
            400,
            "RepositoryNotFoundException",
            &format!(
                "The repository with name '{name}' does not exist in the registry with id \
                 '{account}'"
            ),
        )
    }
}

fn repository_name(input: &Value) -> Result<&str, Reply> {
    input["repositoryName"].as_str().ok_or_else(|| {
        refusal(
            400,
            "InvalidParameterException",
            "Invalid parameter at 'repositoryName' failed to satisfy constraint: 'Member must not \
             be null'",
        )
    })
}

/// The service model's pattern, read by hand: segments of `[a-z0-9]+` joined by `.`, `_`, `__` or
/// dashes, at 2 to 256 characters.
pub(super) fn is_repository_name(name: &str) -> bool {
    let segment = |segment: &str| {
        let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let mut separators = segment.split(alphanumeric);
        segment.starts_with(alphanumeric)
            && segment.ends_with(alphanumeric)
            && separators.all(|between| {
                matches!(between, "" | "." | "_" | "__") || between.chars().all(|c| c == '-')
            })
    };
    (2..=256).contains(&name.len()) && name.split('/').all(segment)
}

fn refusal(status: u16, code: &str, message: &str) -> Reply {
    let body = json!({"__type": code, "message": message});
    Reply::new(status, body.to_string().into_bytes())
        .with("content-type", "application/x-amz-json-1.1")
        .with("x-amzn-errortype", code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_service_model() {
        for good in ["ab", "a/b", "a--b", "a__b", "a.b/c-d_e", "0/1", "a---b"] {
            assert!(is_repository_name(good), "{good}");
        }
        for bad in [
            "a", "", "A/b", "a//b", "/ab", "ab/", "a___b", "a..b", "a.-b", "-ab", "ab_",
        ] {
            assert!(!is_repository_name(bad), "{bad}");
        }
    }
}
