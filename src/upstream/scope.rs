//! What a token has to be good for, and how that is put to a token service.
//!
//! The grammar is distribution's (`docs/spec/auth/scope.md`): `type:name:action,action`, several separated
//! by spaces. Registries differ in the words, so a challenge's count where it has any; what it leaves out of
//! what we know to need is added to them. Pure.

use std::fmt;

use crate::oci::RepositoryName;

/// What a question needs a token for. A token for one is used for no other: a service may grant some and
/// deny others, and one that was renewed for reading must not be what an upload goes on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope<'a> {
    /// To be somebody at all.
    Registry,
    /// To list repositories.
    Catalog,
    /// To read a repository.
    Pull(&'a RepositoryName),
    /// To add to it.
    Push(&'a RepositoryName),
    /// To add to one what another has.
    Mount {
        /// The one.
        into: &'a RepositoryName,
        /// The other.
        from: &'a RepositoryName,
    },
    /// To take away from it.
    Delete(&'a RepositoryName),
}

impl<'a> Scope<'a> {
    /// The repository that it is about.
    pub(super) fn repository(self) -> Option<&'a RepositoryName> {
        match self {
            Self::Registry | Self::Catalog => None,
            Self::Pull(name) | Self::Push(name) | Self::Delete(name) => Some(name),
            Self::Mount { into, .. } => Some(into),
        }
    }
}

impl fmt::Display for Scope<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry => Ok(()),
            Self::Catalog => f.write_str("registry:catalog:*"),
            Self::Pull(name) => write!(f, "repository:{name}:pull"),
            Self::Push(name) => write!(f, "repository:{name}:pull,push"),
            Self::Mount { into, from } => {
                write!(f, "repository:{into}:pull,push repository:{from}:pull")
            }
            Self::Delete(name) => write!(f, "repository:{name}:delete"),
        }
    }
}

/// What a token service is asked to grant. Two that say the same are equal, in whatever order it was said:
/// distribution itself puts actions in another order each time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Access(Vec<Entry>);

/// Some actions on one thing; or a word of the registry's own, without any.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    /// Type and name, as in `repository:team/app`.
    resource: String,
    actions: Vec<String>,
}

impl Entry {
    fn parse(text: &str) -> Self {
        // A name may have colons in it, of a port.
        if let Some((resource, actions)) = text.rsplit_once(':')
            && resource.contains(':')
        {
            let actions = actions.split(',').filter(|action| !action.is_empty());
            let actions: Vec<_> = actions.map(str::to_owned).collect();
            if !actions.is_empty() {
                let mut entry = Self {
                    resource: resource.to_owned(),
                    actions: Vec::new(),
                };
                entry.allow(actions);
                return entry;
            }
        }
        Self {
            resource: text.to_owned(),
            actions: Vec::new(),
        }
    }

    fn allow(&mut self, actions: Vec<String>) {
        self.actions.extend(actions);
        self.actions.sort_unstable();
        self.actions.dedup();
        // It stands for all of them.
        if self.actions.iter().any(|action| action == "*") {
            self.actions.retain(|action| action == "*");
        }
    }

    /// `repository(plugin):` is a class of them.
    fn is_of_a_repository(&self) -> bool {
        self.resource
            .strip_prefix("repository")
            .is_some_and(|rest| rest.starts_with([':', '(']))
    }
}

impl Access {
    fn parse(scope: &str) -> Self {
        let mut access = Self::default();
        for text in scope.split_ascii_whitespace() {
            access.add(Entry::parse(text));
        }
        access
    }

    /// What to ask for to get what `needed` takes, where the registry asks for `challenged`.
    pub(super) fn for_need(needed: Scope<'_>, challenged: Option<&str>) -> Self {
        let own = Self::parse(&needed.to_string());
        let mut asked = Self::parse(challenged.unwrap_or_default());
        if needed.repository().is_none() {
            // GHCR and zot name a repository that nobody asked for, and nobody may have.
            asked.0.retain(|entry| !entry.is_of_a_repository());
        }
        if asked.0.is_empty() {
            return own;
        }
        // What it calls otherwise (`aws`, in ECR Public) is for it to name.
        if own.0.iter().any(|entry| asked.knows(&entry.resource)) {
            asked.join(&own);
        }
        asked
    }

    /// Adds what `other` has.
    pub(super) fn join(&mut self, other: &Self) {
        for entry in &other.0 {
            self.add(entry.clone());
        }
    }

    /// Each thing with its actions, as a token service is asked for it.
    pub(super) fn entries(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|Entry { resource, actions }| {
            let actions = actions.join(",");
            match actions.is_empty() {
                true => resource.clone(),
                false => format!("{resource}:{actions}"),
            }
        })
    }

    fn knows(&self, resource: &str) -> bool {
        self.0.iter().any(|entry| entry.resource == resource)
    }

    fn add(&mut self, new: Entry) {
        let mut known = self.0.iter_mut();
        match known.find(|entry| entry.resource == new.resource) {
            Some(entry) => entry.allow(new.actions),
            None => self.0.push(new),
        }
        self.0.sort_unstable();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn asked(needed: Scope<'_>, challenged: &str) -> String {
        let challenged = Some(challenged).filter(|scope| !scope.is_empty());
        let access = Access::for_need(needed, challenged);
        access.entries().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn what_is_needed_is_asked_for_in_the_registrys_words() {
        let (app, base) = ("team/app".parse().unwrap(), "team/base".parse().unwrap());
        let mount = Scope::Mount {
            into: &app,
            from: &base,
        };
        for (needed, challenged, expected) in [
            (Scope::Pull(&app), "", "repository:team/app:pull"),
            (Scope::Push(&app), "", "repository:team/app:pull,push"),
            (Scope::Delete(&app), "", "repository:team/app:delete"),
            (Scope::Catalog, "", "registry:catalog:*"),
            (Scope::Registry, "", ""),
            // The order is nobody's.
            (
                Scope::Push(&app),
                "repository:team/app:push,pull",
                "repository:team/app:pull,push",
            ),
            // A challenge to read, where the question was to write.
            (
                Scope::Push(&app),
                "repository:team/app:pull",
                "repository:team/app:pull,push",
            ),
            // Old ones call it so.
            (
                Scope::Delete(&app),
                "repository:team/app:*",
                "repository:team/app:*",
            ),
            (
                mount,
                "repository:team/base:pull repository:team/app:push,pull",
                "repository:team/app:pull,push repository:team/base:pull",
            ),
            (
                mount,
                "repository:team/app:pull,push",
                "repository:team/app:pull,push repository:team/base:pull",
            ),
            // Words of their own.
            (Scope::Pull(&app), "aws", "aws"),
            (
                Scope::Pull(&app),
                "repository:docker-remote/team/app:pull",
                "repository:docker-remote/team/app:pull",
            ),
            (
                Scope::Pull(&app),
                "repository:registry.example:5000/team/app:pull",
                "repository:registry.example:5000/team/app:pull",
            ),
            // Examples in the place of words.
            (Scope::Registry, "repository:user/image:pull", ""),
            (
                Scope::Catalog,
                "repository:user/image:pull",
                "registry:catalog:*",
            ),
            (Scope::Registry, "aws", "aws"),
        ] {
            assert_eq!(
                asked(needed, challenged),
                expected,
                "{needed:?} {challenged}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_challenge_is_read_and_asked_for_once(challenged in "[a-z:,* ()]{0,40}|.*") {
            let app = "a".parse().unwrap();
            let access = Access::for_need(Scope::Push(&app), Some(&challenged));
            let again: Vec<_> = access.entries().collect();
            prop_assert_eq!(Access::parse(&again.join(" ")), access);
        }
    }
}
