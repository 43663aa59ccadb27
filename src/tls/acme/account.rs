//! Our account at an ACME directory (RFC 8555, 7.3).
//!
//! `account.json` holds its key and what the directory was told of it, in one file so that neither is ever without
//! the other. Where the configuration has another address by now the directory is told that, and where it names
//! another account of the directory's owner (7.3.4) a new one is made, for a binding is part of the making. What a
//! new one takes the place of stays in `account.json.old`.

use std::path::Path;

use instant_acme::{Account, NewAccount, Problem};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::https::Https;
use super::{AcmeError, AcmeOptions, ExternalBinding, binding};
use crate::telemetry::chain;
use crate::tls::private_files;

const FILE: &str = "account.json";
const OLD_FILE: &str = "account.json.old";

/// What RFC 8555, 6.7 says of an account that the directory does not know.
const UNKNOWN: &str = "urn:ietf:params:acme:error:accountDoesNotExist";

/// An account as it lies on disk.
#[derive(Serialize, Deserialize)]
struct Stored {
    /// Its key, and what else the library wants to know of it.
    #[serde(flatten)]
    credentials: Map<String, Value>,
    /// `None` where that is not known.
    told: Option<Told>,
}

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
}

impl Stored {
    /// `None` where there is none.
    fn read(folder: &Path) -> Result<Option<Self>, AcmeError> {
        let file = folder.join(FILE);
        let text = private_files::read_if_any(&file)?;
        let read = text.map(|text| serde_json::from_str(&text));
        read.transpose().map_err(|_| AcmeError::Account { file })
    }

    fn write(&self, folder: &Path, name: &str) -> Result<(), AcmeError> {
        let text = serde_json::to_string(self).map_err(instant_acme::Error::from)?;
        Ok(private_files::write(&folder.join(name), &text)?)
    }
}

/// Whether there is an account whose directory was told something else than the configuration says.
pub(super) fn has_news(options: &AcmeOptions, folder: &Path) -> bool {
    let stored = Stored::read(folder).ok().flatten();
    stored.is_some_and(|stored| stored.told != Some(Told::by(options)))
}

/// Whether an order failed because its directory does not know the account: it began anew, or was restored from
/// before.
pub(super) fn is_unknown(error: &AcmeError) -> bool {
    let AcmeError::Directory(instant_acme::Error::Api(Problem { r#type, .. })) = error else {
        return false;
    };
    r#type.as_deref() == Some(UNKNOWN)
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
    let now = Told::by(options);
    let is_of_another = |stored: &Stored| {
        let before = stored.told.as_ref();
        before.is_some_and(|before| now.eab_kid.is_some() && before.eab_kid != now.eab_kid)
    };
    let stored = Stored::read(folder)?.filter(|stored| !is_of_another(stored));
    let Some(mut stored) = stored else {
        return create(options, folder, client).await;
    };
    let credentials = serde_json::from_value(Value::Object(stored.credentials.clone()));
    let file = folder.join(FILE);
    let credentials = credentials.map_err(|_| AcmeError::Account { file })?;
    let builder = Account::builder_with_http(Box::new(client.clone()));
    let account = builder.from_credentials(credentials).await?;
    if stored.told.as_ref() != Some(&now) {
        let contact = contact(options);
        let contact: Vec<&str> = contact.iter().map(String::as_str).collect();
        match account.update_contacts(&contact).await {
            Ok(()) => {
                stored.told = Some(now);
                stored.write(folder, FILE)?;
                tracing::info!("the ACME directory knows the account's address");
            }
            Err(error) => {
                let error = chain(&error);
                tracing::warn!(error, "the ACME directory does not take tls.acme.email");
            }
        }
    }
    Ok(account)
}

/// A new account, in the place of that of `folder` if there is one.
///
/// # Errors
/// The directory makes none, or it cannot be written down.
pub(super) async fn create(
    options: &AcmeOptions,
    folder: &Path,
    client: &Https,
) -> Result<Account, AcmeError> {
    let contact = contact(options);
    let contact: Vec<&str> = contact.iter().map(String::as_str).collect();
    let new = NewAccount {
        contact: &contact,
        terms_of_service_agreed: true,
        only_return_existing: false,
    };
    let binding = options.binding.as_ref();
    let key = binding.map(ExternalBinding::key).transpose()?;
    let builder = Account::builder_with_http(Box::new(client.clone()));
    let created = builder.create(&new, options.directory.clone(), key.as_ref());
    let created = created.await;
    let (account, credentials) = created.map_err(|error| binding::refusal(binding, error))?;
    if let Some(before) = Stored::read(folder)? {
        before.write(folder, OLD_FILE)?;
    }
    let credentials = serde_json::to_value(&credentials).map_err(instant_acme::Error::from)?;
    let stored = Stored {
        credentials: credentials.as_object().cloned().unwrap_or_default(),
        told: Some(Told::by(options)),
    };
    stored.write(folder, FILE)?;
    Ok(account)
}

/// Where the directory may write to.
fn contact(options: &AcmeOptions) -> Option<String> {
    let email = options.email.as_ref();
    email.map(|email| format!("mailto:{email}"))
}
