//! `import`: takes a bundle into the cache.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use indicatif::{BinaryBytes, ProgressBar, ProgressStyle};
use tokio::sync::mpsc;

use super::Failure;
use super::export::{BAR, plural};
use super::tending::{Render, Tending};
use crate::config::Strings;
use crate::jobs::operations::{DATA_BYTES, Event, Input, Request};
use crate::oci::Platform;
use crate::oci::layout::{INDEX_FILE, LAYOUT_FILE};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Takes what `ecr-proxy export` writes, and image layouts of other tools (skopeo's oci-archive:, docker \
save since docker 25), as a tar, compressed with gzip or not, or as a folder. Every byte is hashed. An image \
is there as a whole or not at all, for clients as if it had been pulled; importing again does nothing, and an \
import that was broken off goes on where it was. What an import says is believed like the upstream's word, \
until the upstream can be asked.\n\
Works beside a running proxy, through its admin socket, and alone on a stopped one.\n\
Ends with 0 if all is well, 1 if an image could not be taken, 2 if it was used wrongly.\n\n\
Example:\n  ecr-proxy import site.tar\n  \
skopeo copy docker://docker.io/library/alpine:3 oci-archive:alpine.tar:3\n  \
ecr-proxy import alpine.tar --as library/alpine"
)]
pub(super) struct Args {
    /// The bundle; - for standard input
    #[arg(value_name = "FILE")]
    bundle: PathBuf,
    /// What the images are to be, where the bundle does not say so: `repository[:tag]`; without a tag, the
    /// bundle's tags stay
    #[arg(long = "as", value_name = "IMAGE")]
    rename: Option<String>,
    /// Only these platforms of images that have several [default: all that are in the bundle]
    #[arg(long, value_name = "PLATFORM", value_delimiter = ',')]
    platform: Vec<Platform>,
    #[command(flatten)]
    tending: Tending,
}

pub(super) fn run(
    args: Args,
    environment: &dyn Strings,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let bar = ProgressBar::no_length();
    let name = match args.bundle == Path::new("-") {
        true => "standard input".to_owned(),
        false => args.bundle.display().to_string(),
    };
    let input =
        input(&args.bundle, &bar).map_err(|error| Failure::Failed(format!("{name}: {error}")))?;
    let request = Request::Import {
        rename: args.rename,
        platforms: args.platform,
    };
    let mut text = Text { bar: bar.clone() };
    let tending = args.tending;
    let outcome = tending.run_with(environment, request, input, &name, &mut text, out);
    bar.finish_and_clear();
    outcome
}

/// The bytes of a bundle, wherever it is.
fn input(path: &Path, bar: &ProgressBar) -> io::Result<Input> {
    if path == Path::new("-") {
        return Input::from_reader(bar.wrap_read(io::stdin()));
    }
    let metadata = fs::metadata(path)?;
    if metadata.is_dir() {
        if !path.join(LAYOUT_FILE).exists() {
            let why = format!("no image layout: there is no {LAYOUT_FILE} in it");
            return Err(io::Error::other(why));
        }
        return folder(path.to_owned());
    }
    let file = File::open(path)?;
    if metadata.is_file() {
        bar.set_length(metadata.len());
        if let Ok(style) = ProgressStyle::with_template(BAR) {
            bar.set_style(style);
        }
    }
    Input::from_reader(bar.wrap_read(file))
}

/// A layout in a folder, as the archive that it would be.
fn folder(path: PathBuf) -> io::Result<Input> {
    let (sender, input) = Input::channel();
    std::thread::Builder::new()
        .name("input".to_owned())
        .spawn(move || {
            let pieces = Pieces(sender.clone());
            let mut archive = tar::Builder::new(BufWriter::with_capacity(DATA_BYTES, pieces));
            let packed = pack(&path, &mut archive)
                .and_then(|()| archive.into_inner())
                .and_then(|mut archive| archive.flush());
            if let Err(error) = packed {
                // Whoever reads has left, or hears of it.
                let _ = sender.blocking_send(Err(error));
            }
        })?;
    Ok(input)
}

/// What tells of the rest comes first.
fn pack(folder: &Path, archive: &mut tar::Builder<impl Write>) -> io::Result<()> {
    for name in [LAYOUT_FILE, INDEX_FILE] {
        append(folder, name, archive)?;
    }
    let blobs = "blobs/sha256";
    for entry in fs::read_dir(folder.join(blobs))? {
        if let Some(name) = entry?.file_name().to_str() {
            append(folder, &format!("{blobs}/{name}"), archive)?;
        }
    }
    Ok(())
}

fn append(folder: &Path, name: &str, archive: &mut tar::Builder<impl Write>) -> io::Result<()> {
    let path = folder.join(name);
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{name}: {error}"));
    let mut file = File::open(&path).map_err(named)?;
    let size = file.metadata()?.len();
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o644);
    archive.append_data(&mut header, name, (&mut file).take(size))
}

/// Passes on what is written.
struct Pieces(mpsc::Sender<io::Result<Bytes>>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = Bytes::copy_from_slice(bytes);
        let sent = self.0.blocking_send(Ok(piece));
        sent.map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Text {
    bar: ProgressBar,
}

impl Render for Text {
    fn event(&mut self, event: Event, out: &mut dyn Write) -> Result<(), Failure> {
        let mut line = |text: String| self.bar.suspend(|| writeln!(out, "{text}"));
        match event {
            Event::Imported {
                image,
                digest,
                replaced,
                error,
            } => line(match (error, replaced) {
                (Some(error), _) => format!("{image}: NOT imported: {error}"),
                (None, Some(replaced)) => format!("{image}: {digest}, was {replaced}"),
                (None, None) => format!("{image}: {digest}"),
            })?,
            Event::ImportEnded(tally) => line(format!(
                "{}: {} new ({}), {} known ({})",
                plural(tally.images, "image"),
                plural(tally.new_blobs, "blob"),
                BinaryBytes(tally.new_bytes),
                tally.known_blobs,
                BinaryBytes(tally.known_bytes),
            ))?,
            _ => {}
        }
        Ok(())
    }
}
