//! `export`: images from the cache as a bundle.

use std::fs::{self, File};
use std::io::{self, IsTerminal as _, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use indicatif::{BinaryBytes, ProgressBar, ProgressStyle};
use tempfile::{NamedTempFile, TempPath};

use super::Failure;
use super::tending::{JsonLines, Render, Tending};
use crate::config::Strings;
use crate::jobs::operations::{Event, Export, Request, WarmDone, WarmProgress};
use crate::oci::{ImageName, Platform};

/// Bars of bytes, the same for export and import.
pub(super) const BAR: &str =
    "{wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";

#[derive(Debug, clap::Args)]
#[command(
    after_help = "A bundle is the tar of an OCI image layout: `ecr-proxy import` takes it in, and other tools read \
it as well, each image by its full name. What is not in the cache is fetched first, as `ecr-proxy warm` does; \
where the upstream cannot be asked, an image that is complete is exported as it was last seen. The same \
content gives the same bytes. Every blob is hashed \
while it is read; nothing is left of a bundle that could not be written to its end.\n\
Works beside a running proxy, through its admin socket, and alone on a stopped one.\n\
Ends with 0 if all is well, 1 if it failed, 2 if it was used wrongly.\n\n\
Example:\n  ecr-proxy export team/app:v1 team/db:14 -o site.tar\n  \
skopeo copy oci-archive:site.tar:registry.mydomain.com/team/app:v1 \\\n    docker://elsewhere.example/app:v1"
)]
pub(super) struct Args {
    /// Images, written as clients write them: `[domain/]repository[:tag|@digest]`
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<ImageName>,
    /// The bundle; - for standard output, but not with --json
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Only these platforms of images that have several, such as linux/amd64,linux/arm64 [default: all]
    #[arg(long, value_name = "PLATFORM", value_delimiter = ',')]
    platform: Vec<Platform>,
    /// Leave out what refers to the images: signatures, SBOMs
    #[arg(long)]
    no_referrers: bool,
    /// Ask no upstream: export what is in the cache, as it is there
    #[arg(long)]
    offline: bool,
    #[command(flatten)]
    tending: Tending,
}

pub(super) fn run(
    args: Args,
    environment: &dyn Strings,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let is_stdout = args.output == Path::new("-");
    if is_stdout && args.tending.json {
        let why = "--json would stand in the midst of the bundle: name a file with -o";
        return Err(Failure::Usage(why.to_owned()));
    }
    if is_stdout && io::stdout().is_terminal() {
        let why = "a bundle is not for a terminal: name a file with -o";
        return Err(Failure::Usage(why.to_owned()));
    }
    let request = Request::Export(Export {
        images: args.images,
        platforms: args.platform,
        referrers: !args.no_referrers,
        offline: args.offline,
    });
    let mut writing = Writing {
        target: match is_stdout {
            true => Target::Output,
            false => Target::open(&args.output)?,
        },
        json: args.tending.json,
        bar: ProgressBar::new_spinner(),
        told: None,
    };
    let tending = args.tending;
    tending.run_as_it_is(environment, request, &mut writing, out)?;
    writing.end(&args.output, out)
}

/// Where the bundle goes.
enum Target {
    /// Standard output.
    Output,
    /// A file that gets its name once it is whole.
    New(File, TempPath),
    /// A pipe or a device, which has its name already.
    Special(File),
}

impl Target {
    fn open(path: &Path) -> Result<Self, Failure> {
        let named =
            |error: io::Error| Failure::Failed(format!("cannot write {}: {error}", path.display()));
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => {
                let why = format!("-o {}: it is a folder", path.display());
                Err(Failure::Usage(why))
            }
            Ok(metadata) if !metadata.is_file() => {
                let file = File::options().write(true).open(path).map_err(named)?;
                Ok(Self::Special(file))
            }
            _ => {
                let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
                let folder = folder.unwrap_or(Path::new("."));
                let file = match fs::metadata(folder) {
                    Ok(_) => new_file(folder),
                    Err(error) => Err(error),
                };
                let file = file.map_err(named)?;
                let (file, path) = file.into_parts();
                Ok(Self::New(file, path))
            }
        }
    }
}

/// A file for now, that anybody may read whom the umask lets.
fn new_file(folder: &Path) -> io::Result<NamedTempFile> {
    use std::os::unix::fs::PermissionsExt as _;
    tempfile::Builder::new()
        .prefix(".bundle-")
        .permissions(fs::Permissions::from_mode(0o666))
        .tempfile_in(folder)
}

/// Puts a bundle where it goes and shows how far it is.
struct Writing {
    target: Target,
    json: bool,
    bar: ProgressBar,
    told: Option<Event>,
}

impl Render for Writing {
    fn event(&mut self, event: Event, out: &mut dyn Write) -> Result<(), Failure> {
        match &event {
            Event::WarmProgress(progress) => {
                let WarmProgress { image, reached } = progress;
                let (done, all) = (BinaryBytes(reached.bytes_done), BinaryBytes(reached.bytes));
                self.bar
                    .set_message(format!("{image}: {done} of {all} in the cache"));
                self.bar.tick();
            }
            Event::WarmDone(done) if !self.json => self.bar.suspend(|| tell(done)),
            Event::Bundle { bytes, .. } => {
                self.told = Some(event.clone());
                self.bar.finish_and_clear();
                self.bar = ProgressBar::new(*bytes);
                if let Ok(style) = ProgressStyle::with_template(BAR) {
                    self.bar.set_style(style);
                }
            }
            _ => {}
        }
        // The end is told when the file has its name.
        if self.json && !matches!(event, Event::End { error: None }) {
            JsonLines.event(event, out)?;
        }
        Ok(())
    }

    fn data(&mut self, data: Bytes, out: &mut dyn Write) -> Result<(), Failure> {
        let length = data.len() as u64;
        let written = match &mut self.target {
            Target::Output => out.write_all(&data),
            Target::New(file, _) | Target::Special(file) => file.write_all(&data),
        };
        written.map_err(|error| Failure::Failed(format!("cannot write the bundle: {error}")))?;
        self.bar.inc(length);
        Ok(())
    }
}

/// What kept an image from being fetched, or is odd about it. Standard output may be the bundle.
fn tell(done: &WarmDone) {
    let mut reasons = done.warmed.errors.iter().chain(&done.warmed.notes);
    if let Some(first) = reasons.next() {
        // Cut off, each part of an image fails for the same one.
        let more = match reasons.count() {
            0 => String::new(),
            more => format!(" (and {more} more)"),
        };
        eprintln!("{}: {first}{more}", done.image);
    }
}

impl Writing {
    fn end(self, path: &Path, out: &mut dyn Write) -> Result<(), Failure> {
        self.bar.finish_and_clear();
        let named =
            |error: io::Error| Failure::Failed(format!("cannot write {}: {error}", path.display()));
        match self.target {
            Target::Output => out.flush()?,
            Target::Special(mut file) => file.flush().map_err(named)?,
            Target::New(file, temporary) => {
                file.sync_all().map_err(named)?;
                temporary
                    .persist(path)
                    .map_err(|error| named(error.error))?;
            }
        }
        if self.json {
            return JsonLines.event(Event::End { error: None }, out);
        }
        if path != Path::new("-")
            && let Some(Event::Bundle {
                images,
                blobs,
                bytes,
            }) = self.told
        {
            let (path, bytes) = (path.display(), BinaryBytes(bytes));
            let images = plural(images, "image");
            let blobs = plural(blobs, "blob");
            writeln!(out, "{path}: {images}, {blobs}, {bytes}")?;
        }
        Ok(())
    }
}

/// So many of something.
pub(super) fn plural(count: u64, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        count => format!("{count} {what}s"),
    }
}
