//! `import`: takes in a bundle, which comes as the operation's input.

use std::io;

use super::message::{Event, ImportTally};
use super::{Input, Names, OperationError, Output, Parts};
use crate::cache::bundle::{self, ImportError, ImportOptions, Imported, Place};
use crate::clock::Clock;
use crate::oci::layout::{LayoutImage, LayoutIndex, annotation};
use crate::oci::{ImageName, Platform, Reference, RepositoryName, Tag};

pub(super) async fn run(
    parts: &Parts,
    rename: Option<String>,
    platforms: Vec<Platform>,
    input: Input,
    output: &Output,
) -> Result<(), OperationError> {
    let rename = match rename {
        None => None,
        Some(text) => Some(
            Rename::parse(&text, &parts.names())
                .map_err(|why| OperationError::Usage(format!("{text}: {why}")))?,
        ),
    };
    let options = ImportOptions {
        platforms,
        max_manifest_bytes: parts.setting.load().max_manifest_bytes,
        at: Clock::system().now(),
    };
    let (store, names) = (parts.store.clone(), parts.names());
    let work = move |output: &Output| {
        let place =
            |index: &LayoutIndex, image: &LayoutImage| place(&names, rename.as_ref(), index, image);
        let going = |_: &_| !output.is_gone();
        let imported = bundle::import(&store, input.until_gone(output), &place, &options, going);
        let (images, tally) = imported.map_err(|error| match error {
            ImportError::Stopped => OperationError::Gone(super::Gone),
            ImportError::Archive(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                OperationError::Failed(
                    "the bundle ends too soon: it was cut short, or is no archive".to_owned(),
                )
            }
            error => OperationError::failed(&error),
        })?;
        let failed = images.iter().filter(|image| image.failed.is_some()).count();
        let count = images.len();
        for image in images {
            output.tell_blocking(told(image))?;
        }
        output.tell_blocking(Event::ImportEnded(ImportTally {
            images: (count - failed) as u64,
            failed_images: failed as u64,
            new_blobs: tally.new_blobs,
            new_bytes: tally.new_bytes,
            known_blobs: tally.known_blobs,
            known_bytes: tally.known_bytes,
        }))?;
        match failed {
            0 => Ok(()),
            failed => Err(OperationError::Failed(format!(
                "{failed} of {count} images could not be imported"
            ))),
        }
    };
    output.blocking(work).await
}

fn told(image: Imported) -> Event {
    Event::Imported {
        image: image.name,
        digest: image.digest,
        replaced: image.replaced,
        error: image.failed,
    }
}

/// What the operator calls an image whose bundle does not say what it is for.
#[derive(Debug)]
struct Rename {
    repository: RepositoryName,
    /// `None` to leave it to the bundle.
    tag: Option<Tag>,
}

impl Rename {
    fn parse(text: &str, names: &Names) -> Result<Self, String> {
        let name: ImageName = text
            .parse()
            .map_err(|error: crate::oci::ParseImageError| error.to_string())?;
        names.route(&name).map_err(|error| error.to_string())?;
        let has_tag = text.rsplit('/').next().is_some_and(|l| l.contains(':'));
        let tag = match name.reference {
            Reference::Digest(_) => return Err("a digest cannot be chosen".to_owned()),
            Reference::Tag(tag) => has_tag.then_some(tag),
        };
        Ok(Self {
            repository: name.repository,
            tag,
        })
    }
}

/// Where an image of a bundle goes: where the operator says, where its own proxy had it, or what its name
/// says.
fn place(
    names: &Names,
    rename: Option<&Rename>,
    index: &LayoutIndex,
    image: &LayoutImage,
) -> Result<Place, String> {
    let said = |key: &str| image.annotations.get(key).map(String::as_str);
    let called = Called::read(image);
    let (repository, tag) = match (rename, said(annotation::REPOSITORY)) {
        (Some(rename), _) => {
            let named = |image: &&LayoutImage| Called::read(image).is_named();
            let is_only = index.manifests.len() == 1;
            let tag = match &rename.tag {
                Some(_) if index.manifests.iter().filter(named).count() > 1 => {
                    return Err("one name was given, for several images: give only the \
                                repository, and the tags are those of the bundle"
                        .to_owned());
                }
                Some(tag) => (is_only || called.is_named()).then(|| tag.clone()),
                // As clients do where no tag is written.
                None if is_only && !called.is_named() => "latest".parse().ok(),
                None => called.tag,
            };
            (rename.repository.clone(), tag)
        }
        (None, Some(repository)) => {
            let repository = repository.parse();
            let repository = repository.map_err(|error| format!("its repository: {error}"))?;
            let tag = said(annotation::TAG).map(str::parse).transpose();
            (
                repository,
                tag.map_err(|error| format!("its tag: {error}"))?,
            )
        }
        (None, None) => match called.name {
            Some(name) => {
                names.route(&name).map_err(|error| {
                    format!("it is called {name}, and {error}: say what it is to be with --as")
                })?;
                let tag = match name.reference {
                    Reference::Tag(tag) => Some(tag),
                    Reference::Digest(_) => None,
                };
                (name.repository, tag)
            }
            None => {
                return Err(
                    "the bundle does not say which repository it is for: say so with --as"
                        .to_owned(),
                );
            }
        },
    };
    let reference = match &tag {
        Some(tag) => Reference::Tag(tag.clone()),
        None => Reference::Digest(image.digest),
    };
    let name = ImageName {
        domain: None,
        repository,
        reference,
    };
    let repo = names.route(&name).map_err(|error| error.to_string())?;
    let name = name.to_string();
    Ok(Place { name, repo, tag })
}

/// What other tools call an image.
#[derive(Default)]
struct Called {
    name: Option<ImageName>,
    tag: Option<Tag>,
}

impl Called {
    fn read(image: &LayoutImage) -> Self {
        let said = |key: &str| image.annotations.get(key).map(String::as_str);
        let own = said(annotation::TAG).and_then(|text| text.parse().ok());
        let names = [annotation::CONTAINERD_NAME, annotation::REF_NAME];
        for text in names.into_iter().filter_map(said) {
            if let Ok(tag) = text.parse::<Tag>() {
                let tag = Some(own.unwrap_or(tag));
                return Self { name: None, tag };
            }
            if let Ok(name) = text.parse::<ImageName>() {
                let tag = match &name.reference {
                    Reference::Tag(tag) => Some(tag.clone()),
                    Reference::Digest(_) => None,
                };
                let tag = own.or(tag);
                return Self {
                    name: Some(name),
                    tag,
                };
            }
        }
        Self {
            name: None,
            tag: own,
        }
    }

    fn is_named(&self) -> bool {
        self.name.is_some() || self.tag.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Digest, media_type};

    fn names() -> Names {
        crate::jobs::operations::names::tests::one_upstream()
    }

    fn image(annotations: &[(&str, &str)]) -> LayoutImage {
        let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        LayoutImage {
            media_type: media_type::OCI_MANIFEST.to_owned(),
            digest: Digest::of(b"m"),
            size: 1,
            annotations: annotations.iter().map(own).collect(),
        }
    }

    fn placed(rename: Option<&str>, images: &[LayoutImage]) -> Vec<Result<String, String>> {
        let rename = rename.map(|text| Rename::parse(text, &names()).expect("a name"));
        let index = LayoutIndex::new(images.to_vec());
        let place = |image| place(&names(), rename.as_ref(), &index, image);
        let places = images.iter().map(place);
        places.map(|place| Ok(place?.name)).collect()
    }

    fn digest() -> String {
        Digest::of(b"m").to_string()
    }

    #[test]
    fn our_own_words_come_before_what_others_call_it() {
        let ours = image(&[
            (annotation::REPOSITORY, "team/app"),
            (annotation::TAG, "v1"),
            (annotation::REF_NAME, "elsewhere.example/x:y"),
        ]);
        let referrer = image(&[(annotation::REPOSITORY, "team/app")]);
        let expected = [
            Ok("team/app:v1".to_owned()),
            Ok(format!("team/app@{}", digest())),
        ];
        assert_eq!(placed(None, &[ours, referrer]), expected);
    }

    #[test]
    fn a_full_name_of_ours_is_enough_and_one_of_others_is_not() {
        for (name, expected) in [
            ("registry.mydomain.com/team/app:v1", Some("team/app:v1")),
            ("team/app", Some("team/app:latest")),
            ("app:v1", Some("app:v1")),
            ("docker.io/library/alpine:3", None),
            ("v1", None),
            ("///", None),
        ] {
            for key in [annotation::REF_NAME, annotation::CONTAINERD_NAME] {
                let placed = placed(None, &[image(&[(key, name)])]);
                let is_as_expected = match (&placed[0], expected) {
                    (Ok(name), Some(expected)) => name == expected,
                    (Err(why), None) => why.contains("--as"),
                    _ => false,
                };
                assert!(is_as_expected, "{name}: {placed:?}");
            }
        }
        assert!(placed(None, &[image(&[])])[0].is_err());
    }

    #[test]
    fn a_given_name_wins_and_tags_stay_where_none_is_given() {
        let (v1, v2) = (
            image(&[(annotation::REF_NAME, "v1")]),
            image(&[(annotation::REF_NAME, "docker.io/library/x:v2")]),
        );
        let (unnamed, both) = (image(&[]), [v1.clone(), v2]);
        let ok = |text: &str| Ok(text.to_owned());
        assert_eq!(placed(Some("a/b"), &both), [ok("a/b:v1"), ok("a/b:v2")]);
        assert_eq!(
            placed(Some("a/b:x"), std::slice::from_ref(&v1)),
            [ok("a/b:x")]
        );
        assert_eq!(
            placed(Some("a/b"), std::slice::from_ref(&unnamed)),
            [ok("a/b:latest")]
        );
        assert_eq!(
            placed(Some("a/b:x"), std::slice::from_ref(&unnamed)),
            [ok("a/b:x")]
        );
        let with_referrer = [v1, unnamed];
        let by_digest = ok(&format!("a/b@{}", digest()));
        assert_eq!(
            placed(Some("a/b:x"), &with_referrer),
            [ok("a/b:x"), by_digest]
        );
        assert!(placed(Some("a/b:x"), &both).iter().all(Result::is_err));
    }

    #[test]
    fn what_cannot_be_a_name_is_refused() {
        for text in ["", "A", "quay.io/a", &format!("a@{}", digest())] {
            assert!(Rename::parse(text, &names()).is_err(), "{text}");
        }
    }
}
