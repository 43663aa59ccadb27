//! `warm`: fills the cache with images before anybody asks for them.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read as _, Write};
use std::path::{Path, PathBuf};

use indicatif::{BinaryBytes, HumanCount, MultiProgress, ProgressBar, ProgressStyle};

use super::Failure;
use super::tending::{Render, Tending};
use crate::config::Strings;
use crate::jobs::operations::{Event, Request, Warm, WarmDone, WarmProgress, WarmSummary};
use crate::oci::{ImageName, Platform};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Fetches every manifest, config and layer, and the signatures and SBOMs that refer to the images, \
so that they can be pulled with the link cut. Without --platform and --all-platforms it takes what this \
machine would run, as docker pull does. What is there already is not fetched again.\n\
Works beside a running proxy, through its admin socket, and alone on a stopped one. Ends with 0 if all \
is in the cache as upstream has it, 1 if some is not, 2 if it was used wrongly.\n\n\
Examples:\n  ecr-proxy warm team/app:v1 team/db@sha256:...\n  ecr-proxy warm --all-platforms --file images.txt\n  \
kubectl get pods -A -o jsonpath='{..image}' | tr ' ' '\\n' | ecr-proxy warm -"
)]
pub(super) struct Args {
    /// Images as clients write them, `[domain/]repository[:tag|@digest]`; - reads them from standard
    /// input
    #[arg(value_name = "IMAGE", required_unless_present = "file")]
    images: Vec<String>,
    /// File of images, one a line, # begins a comment; - is standard input
    #[arg(long, value_name = "LIST")]
    file: Option<PathBuf>,
    /// Only these platforms, such as linux/amd64,linux/arm64
    #[arg(long, value_name = "PLATFORM", value_delimiter = ',')]
    platform: Vec<Platform>,
    /// Every platform
    #[arg(long, conflicts_with = "platform")]
    all_platforms: bool,
    /// Leave out signatures, SBOMs and whatever else refers to the images
    #[arg(long)]
    no_referrers: bool,
    #[command(flatten)]
    tending: Tending,
}

pub(super) fn run(
    args: Args,
    environment: &dyn Strings,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let platforms = match (args.all_platforms, args.platform.as_slice()) {
        (true, _) => Vec::new(),
        (false, []) => vec![Platform::of_this_machine()],
        (false, wanted) => wanted.to_vec(),
    };
    let request = Request::Warm(Warm {
        images: images(&args.images, args.file.as_deref())?,
        platforms,
        referrers: !args.no_referrers,
    });
    let mut text = Text::default();
    args.tending.run(environment, request, &mut text, out)
}

/// Everything that was named, each image once, in order.
fn images(named: &[String], file: Option<&Path>) -> Result<Vec<ImageName>, Failure> {
    let mut texts: Vec<(String, String)> = Vec::new();
    for text in named {
        match text.as_str() {
            "-" => read(Path::new("-"), &mut texts)?,
            image => texts.push((String::new(), image.to_owned())),
        }
    }
    if let Some(file) = file {
        read(file, &mut texts)?;
    }
    let mut images = Vec::new();
    let mut faults = Vec::new();
    for (place, text) in texts {
        match text.parse::<ImageName>() {
            Ok(image) if images.contains(&image) => {}
            Ok(image) => images.push(image),
            Err(error) => faults.push(format!("{place}{text}: {error}")),
        }
    }
    if !faults.is_empty() {
        return Err(Failure::Usage(faults.join("\n")));
    }
    if images.is_empty() {
        return Err(Failure::Usage("no image is named".to_owned()));
    }
    Ok(images)
}

/// Adds the images of a list with the place of each.
fn read(file: &Path, texts: &mut Vec<(String, String)>) -> Result<(), Failure> {
    let (name, content) = match file == Path::new("-") {
        true => {
            let mut content = String::new();
            let read = io::stdin().read_to_string(&mut content);
            ("standard input".to_owned(), read.map(|_| content))
        }
        false => (file.display().to_string(), fs::read_to_string(file)),
    };
    let content =
        content.map_err(|error| Failure::Usage(format!("cannot read {name}: {error}")))?;
    for (number, line) in content.lines().enumerate() {
        let image = line.split('#').next().unwrap_or_default().trim();
        if !image.is_empty() {
            texts.push((format!("{name} line {}: ", number + 1), image.to_owned()));
        }
    }
    Ok(())
}

/// Lines for a person, and on a terminal a bar for each image under way.
#[derive(Default)]
struct Text {
    /// Draws on standard error, and nothing where that is no terminal.
    bars: MultiProgress,
    by_image: HashMap<String, ProgressBar>,
}

impl Render for Text {
    fn event(&mut self, event: Event, out: &mut dyn Write) -> Result<(), Failure> {
        match event {
            Event::WarmProgress(progress) => self.progress(&progress),
            Event::WarmDone(done) => {
                if let Some(bar) = self.by_image.remove(&done.image.to_string()) {
                    bar.finish_and_clear();
                }
                let lines = done_lines(&done);
                self.bars.suspend(|| out.write_all(lines.as_bytes()))?;
                out.flush()?;
            }
            Event::WarmSummary(summary) => out.write_all(summary_line(&summary).as_bytes())?,
            _ => {}
        }
        Ok(())
    }
}

impl Text {
    fn progress(&mut self, WarmProgress { image, reached }: &WarmProgress) {
        let image = image.to_string();
        let bar = self.by_image.entry(image.clone()).or_insert_with(|| {
            let template =
                "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
            let bar = self.bars.add(ProgressBar::new(reached.bytes));
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar
        });
        let (done, all) = (reached.blobs_done, reached.blobs);
        bar.set_message(format!("{image} {done}/{all}"));
        bar.set_length(reached.bytes);
        bar.set_position(reached.bytes_done);
    }
}

fn done_lines(WarmDone { image, warmed }: &WarmDone) -> String {
    let state = match warmed.errors.is_empty() {
        true => "ok    ",
        false => "FAILED",
    };
    let mut lines = format!("{state}  {image}");
    if warmed.blobs > 0 {
        let fetched = match warmed.fetched_bytes {
            0 => "all there before".to_owned(),
            bytes => format!("{} fetched", BinaryBytes(bytes)),
        };
        lines.push_str(&format!(
            "  {} blobs, {}, {fetched}",
            HumanCount(warmed.blobs),
            BinaryBytes(warmed.bytes)
        ));
    }
    if warmed.referrers > 0 {
        lines.push_str(&format!(", {} referrers", warmed.referrers));
    }
    lines.push('\n');
    for text in warmed.errors.iter().chain(&warmed.notes) {
        lines.push_str(&format!("        {text}\n"));
    }
    lines
}

fn summary_line(summary: &WarmSummary) -> String {
    format!(
        "{} of {} images are in the cache as upstream has them, {}, {} fetched\n",
        summary.complete,
        summary.images,
        BinaryBytes(summary.bytes),
        BinaryBytes(summary.fetched_bytes)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_have_comments_and_each_image_once() {
        let folder = tempfile::tempdir().expect("folder");
        let list = folder.path().join("images.txt");
        let text = "# ours\nteam/app:v1\n\n  team/db # the database\nteam/app:v1\n";
        fs::write(&list, text).expect("file");
        let named = ["team/app:v1".to_owned(), "team/web".to_owned()];
        let images = images(&named, Some(&list)).expect("images");
        let names: Vec<String> = images.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["team/app:v1", "team/web:latest", "team/db:latest"]);
    }

    #[test]
    fn every_wrong_line_is_named() {
        let folder = tempfile::tempdir().expect("folder");
        let list = folder.path().join("images.txt");
        fs::write(&list, "team/app\nTEAM\n\nteam/app:b ad\n").expect("file");
        let error = images(&[], Some(&list)).expect_err("two are wrong");
        assert_eq!(error.exit_code(), 2);
        let text = error.to_string();
        assert!(text.contains("images.txt line 2: TEAM: "), "{text}");
        assert!(
            text.contains("images.txt line 4: team/app:b ad: "),
            "{text}"
        );
        fs::write(&list, "# nothing\n").expect("file");
        let error = images(&[], Some(&list)).expect_err("nothing is named");
        assert!(error.to_string().contains("no image"));
    }
}
