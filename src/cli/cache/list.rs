//! `cache list`: the images in the cache.

use std::io::Write;
use std::time::{Duration, SystemTime};

use indicatif::BinaryBytes;

use crate::cli::Failure;
use crate::cli::tending::{Render, Tending};
use crate::config::Strings;
use crate::jobs::operations::{Event, ImageState, ListedImage, Request, Time};
use crate::oci::ImagePattern;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "An image of several platforms of which only some are here is listed with those.\n\nExample:\n  ecr-proxy cache list\n  ecr-proxy cache list 'team/**:v1.*' --json"
)]
pub(super) struct Args {
    /// Only these: a repository, or repository:tag, in which * stands for part of a name and ** for
    /// whole components
    #[arg(value_name = "PATTERN")]
    images: Option<ImagePattern>,
    #[command(flatten)]
    tending: Tending,
}

pub(super) fn run(
    args: Args,
    environment: &dyn Strings,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let request = Request::List {
        images: args.images,
    };
    args.tending
        .run(environment, request, &mut Table::default(), out)
}

/// Rows are kept until all are known, for their widths.
#[derive(Default)]
struct Table {
    rows: Vec<[String; 6]>,
}

impl Render for Table {
    fn event(&mut self, event: Event, _: &mut dyn Write) -> Result<(), Failure> {
        if let Event::Image(image) = event {
            self.rows.push(row(&image, SystemTime::now()));
        }
        Ok(())
    }

    fn end(&mut self, out: &mut dyn Write) -> Result<(), Failure> {
        if self.rows.is_empty() {
            writeln!(out, "no images")?;
            return Ok(());
        }
        let head = ["IMAGE", "DIGEST", "SIZE", "STATE", "CHECKED", "LAST USED"];
        self.rows.insert(0, head.map(str::to_owned));
        let mut widths = [0; 6];
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.chars().count().max(*width);
            }
        }
        for row in &self.rows {
            let mut line = String::new();
            for (width, cell) in widths.into_iter().zip(row) {
                line.push_str(&format!("{cell:width$}  "));
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

fn row(image: &ListedImage, now: SystemTime) -> [String; 6] {
    let hex = image.digest.hex();
    let name = match &image.tag {
        Some(tag) => format!("{}:{tag}", image.name()),
        None => format!("{}@sha256:{}", image.name(), &hex[..12]),
    };
    [
        name,
        hex[..12].to_owned(),
        BinaryBytes(image.bytes).to_string(),
        state(image),
        ago(Some(image.checked), now),
        ago(image.last_use, now),
    ]
}

fn state(image: &ListedImage) -> String {
    let here = image.platforms.iter().filter(|known| known.is_complete);
    let here: Vec<&str> = here.map(|known| &*known.platform).collect();
    match image.state {
        ImageState::Complete => "complete".to_owned(),
        ImageState::SomePlatforms => format!("{} only", here.join(", ")),
        ImageState::Partial => {
            let missing = &image.missing;
            let manifests = match missing.manifests {
                0 => String::new(),
                1 => "1 manifest, ".to_owned(),
                count => format!("{count} manifests, "),
            };
            format!("lacks {manifests}{} of blobs", BinaryBytes(missing.bytes))
        }
    }
}

/// How long ago that was, in one unit.
fn ago(time: Option<Time>, now: SystemTime) -> String {
    let Some(Time(time)) = time else {
        return "-".to_owned();
    };
    let since = now.duration_since(time).unwrap_or(Duration::ZERO).as_secs();
    match since {
        0..60 => format!("{since}s ago"),
        60..3600 => format!("{}m ago", since / 60),
        3600..86_400 => format!("{}h ago", since / 3600),
        _ => format!("{}d ago", since / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::operations::{ListedPlatform, Missing};
    use crate::oci::Digest;

    fn image(state: ImageState) -> ListedImage {
        let platform = |platform: &str, is_complete| ListedPlatform {
            platform: platform.to_owned(),
            is_complete,
        };
        ListedImage {
            upstream: "prod".to_owned(),
            domain: None,
            repository: "team/app".parse().expect("a name"),
            tag: Some("v1".parse().expect("a tag")),
            digest: Digest::of(b""),
            state,
            platforms: vec![
                platform("linux/amd64", true),
                platform("linux/arm64", false),
            ],
            bytes: 3 << 20,
            missing: Missing {
                manifests: 1,
                blobs: 2,
                bytes: 2048,
            },
            referrers: 0,
            is_pinned: false,
            checked: Time::from_seconds(1000),
            last_use: None,
        }
    }

    #[test]
    fn a_row_says_what_is_there_and_what_is_not() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000 + 7200);
        let row = row(&image(ImageState::SomePlatforms), now);
        let digest = "e3b0c44298fc";
        let want = [
            "team/app:v1",
            digest,
            "3.00 MiB",
            "linux/amd64 only",
            "2h ago",
            "-",
        ];
        assert_eq!(row, want);
        let state = state(&image(ImageState::Partial));
        assert_eq!(state, "lacks 1 manifest, 2.00 KiB of blobs");
    }
}
