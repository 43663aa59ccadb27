//! Our account at an ACME directory (RFC 8555, 7.3).
//!
//! `account.json` holds its key, `told.json` what the directory was told of it. Where the configuration has
//! another address by now the directory is told that, and where it names another account of the directory's
//! owner (7.3.4) a new one is made, for a binding is part of the making.

use std::path::Path;

use instant_acme::{Account, AccountCredentials, NewAccount};
use serde::{Deserialize, Serialize};

use super::https::Https;
use super::{AcmeError, AcmeOptions, ExternalBinding, binding};
use crate::telemetry::chain;
use crate::tls::private_files;

/// What a directory knows of an account.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Told {
    email: Option<String>,
    eab_kid: Option<String>,
}

impl Told {
    fn by(options: &AcmeOptions) -> Self {
        let binding = options.binding.as_ref();
        Self {
            email: options.email.clone(),
            eab_kid: binding.map(|binding| binding.kid.clone()),
        }
    }

    /// What was told last; `None` where that is not known.
    fn read(folder: &Path) -> Option<Self> {
        let text = private_files::read_if_any(&folder.join("told.json"));
        serde_json::from_str(&text.ok()??).ok()
    }

    fn write(&self, folder: &Path) -> Result<(), AcmeError> {
        let text = serde_json::to_string(self).map_err(instant_acme::Error::from)?;
        Ok(private_files::write(&folder.join("told.json"), &text)?)
    }
}

/// Whether there is an account whose directory was told something else than the configuration says.
pub(super) fn has_news(options: &AcmeOptions, folder: &Path) -> bool {
    folder.join("account.json").exists() && Told::read(folder) != Some(Told::by(options))
}

/// The account of `folder`, made where there is none.
///
/// # Errors
/// There is none, or what is stored of it cannot be used. That the directory takes no other address is only
/// logged: it is no reason to be without a certificate.
pub(super) async fn open(
    options: &AcmeOptions,
    folder: &Path,
    client: &Https,
) -> Result<Account, AcmeError> {
    let file = folder.join("account.json");
    let builder = Account::builder_with_http(Box::new(client.clone()));
    let contact = options.email.as_ref();
    let contact = contact.map(|email| format!("mailto:{email}"));
    let contact: Vec<&str> = contact.iter().map(String::as_str).collect();
    let (before, now) = (Told::read(folder), Told::by(options));
    let is_of_another = before
        .as_ref()
        .is_some_and(|before| now.eab_kid.is_some() && before.eab_kid != now.eab_kid);
    if !is_of_another && let Some(stored) = private_files::read_if_any(&file)? {
        let credentials: AccountCredentials =
            serde_json::from_str(&stored).map_err(|_| AcmeError::Account { file })?;
        let account = builder.from_credentials(credentials).await?;
        if before.as_ref() != Some(&now) {
            match account.update_contacts(&contact).await {
                Ok(()) => {
                    now.write(folder)?;
                    tracing::info!("the ACME directory knows the account's address");
                }
                Err(error) => {
                    let error = chain(&error);
                    tracing::warn!(error, "the ACME directory does not take tls.acme.email");
                }
            }
        }
        return Ok(account);
    }
    let new = NewAccount {
        contact: &contact,
        terms_of_service_agreed: true,
        only_return_existing: false,
    };
    let binding = options.binding.as_ref();
    let key = binding.map(ExternalBinding::key).transpose()?;
    let created = builder.create(&new, options.directory.clone(), key.as_ref());
    let created = created.await;
    let (account, credentials) = created.map_err(|error| binding::refusal(binding, error))?;
    let text = serde_json::to_string(&credentials).map_err(instant_acme::Error::from)?;
    private_files::write(&file, &text)?;
    now.write(folder)?;
    Ok(account)
}
