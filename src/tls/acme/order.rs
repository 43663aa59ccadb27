//! One certificate from an ACME directory: order, proofs, certificate (RFC 8555, 7.1).

use std::time::Duration;

use instant_acme::{
    Account, AuthorizationStatus, ChallengeType, Identifier, KeyAuthorization, NewOrder, Order,
    OrderStatus, RetryPolicy,
};
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;

use super::{AcmeError, AcmeOptions, Proof};
use crate::tls::challenges::{Challenges, Proofs};

/// How long a directory may take to look at the proofs, and to issue.
const PATIENCE: RetryPolicy = RetryPolicy::new().timeout(Duration::from_secs(120));

/// A certificate chain for the configured domains and its new key, both in PEM form.
pub(super) async fn certificate(
    options: &AcmeOptions,
    account: &Account,
    challenges: &Challenges,
) -> Result<(String, String), AcmeError> {
    let domains = options.domains.iter().cloned();
    let identifiers: Vec<Identifier> = domains.map(Identifier::Dns).collect();
    let mut order = account.new_order(&NewOrder::new(&identifiers)).await?;
    let proofs = challenges.begin();
    prove(&mut order, options.proof, &proofs).await?;
    match order.poll_ready(&PATIENCE).await {
        Ok(OrderStatus::Ready) => {}
        Ok(_) | Err(instant_acme::Error::Api(_)) => return Err(refusal(&mut order).await),
        Err(error) => return Err(error.into()),
    }
    drop(proofs);

    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(AcmeError::Make)?;
    let mut params = CertificateParams::new(options.domains.clone()).map_err(AcmeError::Make)?;
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(&key).map_err(AcmeError::Make)?;
    order.finalize_csr(request.der()).await?;
    let chain = order.poll_certificate(&PATIENCE).await?;
    Ok((chain, key.serialize_pem()))
}

/// Shows the proofs and says so, for each name that is not proven already.
async fn prove(order: &mut Order, proof: Proof, proofs: &Proofs) -> Result<(), AcmeError> {
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        if authorization.status == AuthorizationStatus::Valid {
            continue;
        }
        let domain = authorization.identifier().to_string();
        let kind = match proof {
            Proof::TlsAlpn => ChallengeType::TlsAlpn01,
            Proof::Http => ChallengeType::Http01,
        };
        let Some(mut challenge) = authorization.challenge(kind) else {
            return Err(AcmeError::NotOffered { proof, domain });
        };
        let answer = challenge.key_authorization();
        match proof {
            Proof::TlsAlpn => proofs.by_certificate(&domain, self_signed(&domain, &answer)?),
            Proof::Http => proofs.by_answer(&challenge.token, answer.as_str()),
        }
        challenge.set_ready().await?;
    }
    Ok(())
}

/// The certificate of RFC 8737, section 3.
fn self_signed(domain: &str, answer: &KeyAuthorization) -> Result<CertifiedKey, AcmeError> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(AcmeError::Make)?;
    let mut params = CertificateParams::new([domain.to_owned()]).map_err(AcmeError::Make)?;
    let digest = answer.digest();
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest.as_ref())];
    let certificate = params.self_signed(&key).map_err(AcmeError::Make)?;
    let private = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let signing = crate::tls::provider()
        .key_provider
        .load_private_key(private)
        .map_err(AcmeError::Tls)?;
    Ok(CertifiedKey::new(vec![certificate.der().clone()], signing))
}

/// What the directory says of the proofs that it did not take.
async fn refusal(order: &mut Order) -> AcmeError {
    let mut reasons = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let Ok(mut authorization) = authorization else {
            continue;
        };
        // What the order remembers is from before the directory looked.
        let Ok(state) = authorization.refresh().await else {
            continue;
        };
        let domain = state.identifier().to_string();
        for problem in state.challenges.iter().filter_map(|all| all.error.as_ref()) {
            let detail = problem.detail.as_deref().unwrap_or("no reason given");
            reasons.push(format!("{domain}: {detail}"));
        }
    }
    AcmeError::Refused(reasons.join("; "))
}
