//! Tokens of ECR Public, for those who have an account: they may pull more than others.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::HeaderValue;

use super::token::{ServerDate, read_any};
use super::{Aws, AwsOptions, Outside};
use crate::upstream::error::{OddToken, TokenError};
use crate::upstream::refresher::{IssuedToken, TokenSource};

/// Where tokens are issued, wherever they are used (ECR Public User Guide, "Registry authentication").
const REGION: &str = "us-east-1";

/// Asks the API of ECR Public.
pub(in crate::upstream) struct PublicApi {
    aws: Aws,
}

impl PublicApi {
    pub(in crate::upstream) fn new(
        upstream: Arc<str>,
        options: AwsOptions,
        outside: Outside,
        timeout: Duration,
    ) -> Self {
        Self {
            aws: Aws::new(upstream, REGION, options, outside, timeout),
        }
    }

    async fn fetch_token(self: &Arc<Self>) -> Result<IssuedToken, TokenError> {
        let date = ServerDate::default();
        let (api, seen) = (Arc::clone(self), date.clone());
        let call = async move {
            let mut config = aws_sdk_ecrpublic::config::Builder::from(&api.aws.load().await);
            if let Some(endpoint) = &api.aws.options.api_endpoint {
                config = config.endpoint_url(endpoint);
            }
            let client = aws_sdk_ecrpublic::Client::from_conf(config.build());
            let call = client.get_authorization_token().customize();
            call.interceptor(seen).send().await
        };
        let answer = self.aws.token(call).await?;
        let odd = TokenError::Odd;
        let data = answer.authorization_data();
        let data = data.ok_or(odd(OddToken::Missing))?;
        let (token, life) = read_any(data.authorization_token(), data.expires_at(), date.or_now())?;
        // The one who takes it knows what is in it.
        let authorization = HeaderValue::from_str(&format!("Bearer {token}"));
        let authorization = authorization.map_err(|_| odd(OddToken::Malformed))?;
        Ok(IssuedToken {
            authorization,
            life,
        })
    }
}

impl TokenSource for Arc<PublicApi> {
    fn fetch(&self) -> BoxFuture<'_, Result<IssuedToken, TokenError>> {
        Box::pin(self.fetch_token())
    }
}
