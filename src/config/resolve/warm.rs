//! `[[warm]]`.

use std::time::Duration;

use super::Resolver;
use crate::config::Warm;
use crate::config::values;
use crate::jobs::operations::Names;
use crate::oci::{ImageName, Platform};

/// Often enough for the images of a site, which are released by people.
const DEFAULT_EVERY: Duration = Duration::from_secs(60 * 60);
/// More often would be no schedule.
const LEAST_EVERY: Duration = Duration::from_secs(1);

impl Resolver {
    /// Only what is behind this proxy can be fetched through it: `names` says what is, where that is known.
    pub(super) fn warm(&mut self, names: Option<&Names>) -> Option<Vec<Warm>> {
        self.each("warm", |this| this.one_warm(names))
    }

    fn one_warm(&mut self, names: Option<&Names>) -> Option<Warm> {
        let images = self.many("warm.images", |text| {
            let image = text.parse::<ImageName>();
            let image = image.map_err(|error| format!("{text:?}: {error}"))?;
            if let Some(names) = names {
                let routed = names.route(&image);
                routed.map_err(|error| format!("{text:?}: {error}"))?;
            }
            Ok(image)
        });
        let every = self.one("warm.every", values::duration);
        let platforms = self.many("warm.platforms", |text| match text {
            "all" => Ok(None),
            _ => match text.parse::<Platform>() {
                Ok(platform) => Ok(Some(platform)),
                Err(error) => Err(format!("{text:?} is not \"all\": {error}")),
            },
        });
        let referrers = self.one("warm.referrers", |text| {
            text.parse::<bool>()
                .map_err(|_| format!("{text:?} is neither true nor false"))
        });
        if images
            .as_ref()
            .is_some_and(|images| images.as_ref().is_none_or(Vec::is_empty))
        {
            self.fault(
                "warm.images",
                "is missing or empty: name what is to be fetched",
            );
        }
        if matches!(&platforms, Some(Some(platforms)) if platforms.is_empty()) {
            self.fault(
                "warm.platforms",
                "is empty: write [\"all\"] for every platform, or leave it out for this machine's",
            );
        }
        if matches!(every, Some(Some(every)) if every < LEAST_EVERY) {
            self.fault("warm.every", "is less than 1s");
        }
        let platforms = match platforms? {
            None => vec![Platform::of_this_machine()],
            Some(platforms) if platforms.contains(&None) => Vec::new(),
            Some(platforms) => platforms.into_iter().flatten().collect(),
        };
        Some(Warm {
            images: images??,
            every: every?.unwrap_or(DEFAULT_EVERY),
            platforms,
            referrers: referrers?.unwrap_or(true),
        })
    }
}
