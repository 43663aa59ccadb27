//! Which tags of a repository may move, as ECR tells it.

use crate::oci::{Pattern, RepositoryName, Tag};

use super::Upstream;
use super::error::UpstreamError;

/// Which tags of a repository may move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagMutability {
    is_immutable: bool,
    except: Vec<Pattern>,
}

impl TagMutability {
    /// No tag moves but those like the filters, in which `*` stands for any characters. Where one of them
    /// cannot be read, any may.
    pub(super) fn immutable_except<'a>(filters: impl IntoIterator<Item = &'a str>) -> Self {
        let filters: Option<Vec<Pattern>> = filters.into_iter().map(filter).collect();
        Self {
            is_immutable: filters.is_some(),
            except: filters.unwrap_or_default(),
        }
    }

    /// Tags move but those like the filters. One that cannot be read makes no difference.
    pub(super) fn mutable_except<'a>(filters: impl IntoIterator<Item = &'a str>) -> Self {
        Self {
            is_immutable: false,
            except: filters.into_iter().filter_map(filter).collect(),
        }
    }

    /// Whether the registry keeps anybody from moving this tag.
    pub fn is_immutable(&self, tag: &Tag) -> bool {
        let is_excepted = self
            .except
            .iter()
            .any(|filter| filter.matches(tag.as_str()));
        self.is_immutable != is_excepted
    }
}

/// Stars in a row say what one says.
fn filter(text: &str) -> Option<Pattern> {
    let mut text = text.to_owned();
    while text.contains("**") {
        text = text.replace("**", "*");
    }
    text.parse().ok().filter(|_| !text.contains('/'))
}

impl Upstream {
    /// Which tags of a repository may move. Takes a permission that pulling does not.
    ///
    /// # Errors
    /// [`UpstreamError::Unsupported`] for registries that do not tell; [`UpstreamError::Refused`] without
    /// the permission; otherwise as [`UpstreamError`] says.
    ///
    /// # Cancel safety
    /// Leaving gives the question up.
    pub async fn tag_mutability(
        &self,
        repository: &RepositoryName,
    ) -> Result<TagMutability, UpstreamError> {
        let api = self.shared.ecr.as_ref().ok_or(UpstreamError::Unsupported)?;
        if *self.shared.terms.load().offline.of(repository) {
            return Err(UpstreamError::Offline);
        }
        self.shared.breaker.admit()?;
        let answer = api.tag_mutability(repository).await;
        self.shared.meter.described(match &answer {
            Ok(_) => "ok",
            Err(UpstreamError::Refused) => "refused",
            Err(_) => "failed",
        });
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moves(mutability: &TagMutability, tag: &str) -> bool {
        !mutability.is_immutable(&tag.parse().unwrap())
    }

    #[test]
    fn exclusions_turn_it_round() {
        let all = TagMutability::immutable_except([]);
        assert!(!moves(&all, "latest"));
        let but_latest = TagMutability::immutable_except(["latest", "dev-*", "**rc**"]);
        for (tag, may) in [
            ("latest", true),
            ("dev-1", true),
            ("1.0rc2", true),
            ("v1", false),
        ] {
            assert_eq!(moves(&but_latest, tag), may, "{tag}");
        }
        let only_releases = TagMutability::mutable_except(["v*"]);
        assert!(!moves(&only_releases, "v1") && moves(&only_releases, "latest"));
        assert!(moves(&TagMutability::mutable_except([]), "v1"));
    }

    #[test]
    fn what_cannot_be_read_needs_asking() {
        assert!(moves(&TagMutability::immutable_except(["a b"]), "v1"));
        assert!(moves(&TagMutability::mutable_except(["a b"]), "v1"));
    }
}
