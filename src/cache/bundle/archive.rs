//! Tar archives of image layouts: read from anybody, written so that the same content is the same bytes.
//!
//! Nothing is ever unpacked by a path: an entry is what [`LayoutPath`] says of its name, and what a
//! layout has no use for (links, devices, names that climb) makes the archive one that is not read.

use std::cell::Cell;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::rc::Rc;

use tar::{Archive, EntryType, Header};

use super::ImportError;
use crate::oci::layout::LayoutPath;

/// How much is read and written at once, in bytes.
pub(super) const PIECE: usize = 256 * 1024;

/// The unit of a tar archive, in bytes.
const BLOCK: u64 = 512;

/// Most bytes that may come between the content of two entries: headers, padding, and extensions of
/// headers, which are read into memory.
const MAX_BETWEEN: u64 = 64 * 1024;

/// Most entries of an archive. Each costs memory to know that it does not come twice.
const MAX_ENTRIES: u64 = 1_000_000;

/// Hands every file of an archive to `visit`, in its order: what it is, its size in bytes, its content.
/// What `visit` leaves unread is passed over.
///
/// # Errors
/// When the archive cannot be read to its end or has in it what a layout does not; what `visit` returns.
pub(super) fn each_file(
    input: impl Read,
    mut visit: impl FnMut(LayoutPath, u64, &mut dyn Read) -> Result<(), ImportError>,
) -> Result<(), ImportError> {
    let left = Rc::new(Cell::new(MAX_BETWEEN));
    let mut archive = Archive::new(Bounded {
        inner: checked(plain(input)?)?,
        left: Rc::clone(&left),
    });
    let mut count = 0;
    for entry in archive.entries().map_err(ImportError::Archive)? {
        left.set(u64::MAX);
        let mut entry = entry.map_err(ImportError::Archive)?;
        count += 1;
        let name = entry.path_bytes().into_owned();
        let refused = |why: String| ImportError::Refused {
            name: String::from_utf8_lossy(&name).into_owned(),
            why,
        };
        if count > MAX_ENTRIES {
            return Err(refused(format!(
                "there are more than {MAX_ENTRIES} entries"
            )));
        }
        let path = LayoutPath::parse(&name).map_err(|error| refused(error.to_string()))?;
        match entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous => {
                let size = entry.size();
                visit(path, size, &mut entry)?;
            }
            EntryType::Directory | EntryType::XGlobalHeader => {}
            other => return Err(refused(format!("it is {}", what(other)))),
        }
        io::copy(&mut entry, &mut io::sink()).map_err(ImportError::Archive)?;
        left.set(MAX_BETWEEN);
    }
    if count == 0 {
        return Err(ImportError::NotALayout("it is empty"));
    }
    left.set(u64::MAX);
    // To its very end: a pipe is not to break, and a compressed stream is checked there.
    let mut rest = BufReader::with_capacity(PIECE, archive.into_inner());
    loop {
        let piece = rest.fill_buf().map_err(ImportError::Archive)?;
        if piece.is_empty() {
            return Ok(());
        }
        if piece.iter().any(|byte| *byte != 0) {
            return Err(ImportError::NotALayout("something follows its end"));
        }
        let length = piece.len();
        rest.consume(length);
    }
}

fn what(entry: EntryType) -> &'static str {
    match entry {
        EntryType::Link | EntryType::Symlink => "a link",
        EntryType::Char | EntryType::Block => "a device",
        EntryType::Fifo => "a pipe",
        EntryType::GNUSparse => "a sparse file",
        _ => "of a kind that a layout does not have",
    }
}

/// The archive itself, whether or not it is compressed.
fn plain<'a>(input: impl Read + 'a) -> Result<Box<dyn Read + 'a>, ImportError> {
    let mut input = BufReader::with_capacity(PIECE, input);
    let mut magic = Vec::new();
    (&mut input)
        .take(4)
        .read_to_end(&mut magic)
        .map_err(ImportError::Archive)?;
    let kind = magic.clone();
    let whole = io::Cursor::new(magic).chain(input);
    match *kind {
        [] => Err(ImportError::NotALayout("it is empty")),
        [0x1f, 0x8b, ..] => {
            let decoder = flate2::read::MultiGzDecoder::new(whole);
            Ok(Box::new(BufReader::with_capacity(PIECE, decoder)))
        }
        [0x28, 0xb5, 0x2f, 0xfd] => Err(ImportError::NotALayout(
            "it is compressed with zstd: decompress it first (zstd -dc FILE | ecr-proxy import -)",
        )),
        _ => Ok(Box::new(whole)),
    }
}

/// The same, if it begins as an archive does: with a header whose checksum agrees, or zeros.
fn checked<'a>(mut input: impl Read + 'a) -> Result<impl Read + 'a, ImportError> {
    let mut first = Vec::new();
    (&mut input)
        .take(BLOCK)
        .read_to_end(&mut first)
        .map_err(ImportError::Archive)?;
    let is_archive = first.len() as u64 == BLOCK && {
        let header = Header::from_byte_slice(&first);
        let sum = first.iter().enumerate().map(|(at, byte)| match at {
            // The checksum itself counts as blanks.
            148..156 => u32::from(b' '),
            _ => u32::from(*byte),
        });
        let is_end = first.iter().all(|byte| *byte == 0);
        is_end || header.cksum().is_ok_and(|told| told == sum.sum::<u32>())
    };
    match is_archive {
        true => Ok(io::Cursor::new(first).chain(input)),
        false => Err(ImportError::NotALayout("it is not a tar archive")),
    }
}

/// Ends with an error where more is read than `left` says.
struct Bounded<R> {
    inner: R,
    left: Rc<Cell<u64>>,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left.get() == 0 {
            return Err(io::Error::other("a header is too long"));
        }
        let read = self.inner.read(buffer)?;
        self.left.set(self.left.get().saturating_sub(read as u64));
        Ok(read)
    }
}

/// Writes archives whose bytes depend on nothing but names and content.
pub(super) struct Writer<W> {
    out: W,
}

impl<W: Write> Writer<W> {
    pub(super) fn new(out: W) -> Self {
        Self { out }
    }

    /// A folder, for tools that want to meet it before what is in it.
    pub(super) fn folder(&mut self, path: &str) -> io::Result<()> {
        self.header(path, EntryType::Directory, 0o755, 0)
    }

    /// A small file.
    pub(super) fn file(&mut self, path: &str, content: &[u8]) -> io::Result<()> {
        self.begin(path, content.len() as u64)?;
        self.out.write_all(content)?;
        self.end(content.len() as u64)
    }

    /// The head of a file, whose content is then written to [`Self::out`].
    pub(super) fn begin(&mut self, path: &str, size: u64) -> io::Result<()> {
        self.header(path, EntryType::Regular, 0o644, size)
    }

    /// Where content goes.
    pub(super) fn out(&mut self) -> &mut W {
        &mut self.out
    }

    /// What follows the content of a file of `size` bytes.
    pub(super) fn end(&mut self, size: u64) -> io::Result<()> {
        let padding = size.next_multiple_of(BLOCK) - size;
        // In range: less than a block.
        self.out.write_all(&[0; BLOCK as usize][..padding as usize])
    }

    /// The end of the archive.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.out.write_all(&[0; 2 * BLOCK as usize])?;
        self.out.flush()
    }

    fn header(&mut self, path: &str, kind: EntryType, mode: u32, size: u64) -> io::Result<()> {
        let mut header = Header::new_gnu();
        header.set_path(path)?;
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_cksum();
        self.out.write_all(header.as_bytes())
    }
}

/// What a file of `size` bytes occupies in an archive, in bytes.
pub(super) fn occupied(size: u64) -> u64 {
    BLOCK + size.next_multiple_of(BLOCK)
}

/// What the end of an archive occupies, in bytes.
pub(super) const END: u64 = 2 * BLOCK;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Digest;

    fn archive(fill: impl FnOnce(&mut Writer<&mut Vec<u8>>)) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes);
        fill(&mut writer);
        writer.finish().unwrap();
        bytes
    }

    fn files(bytes: &[u8]) -> Result<Vec<(LayoutPath, Vec<u8>)>, ImportError> {
        let mut files = Vec::new();
        each_file(bytes, |path, size, content| {
            let mut bytes = Vec::new();
            content.read_to_end(&mut bytes).unwrap();
            assert_eq!(bytes.len() as u64, size);
            files.push((path, bytes));
            Ok(())
        })?;
        Ok(files)
    }

    fn entry(kind: EntryType, name: &[u8], size: u64) -> Vec<u8> {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o644);
        header.set_cksum();
        header.as_bytes().to_vec()
    }

    #[test]
    fn what_is_written_is_read_again() {
        let digest = Digest::of(b"blob");
        let bytes = archive(|writer| {
            writer.file("oci-layout", b"{}").unwrap();
            writer.folder("blobs/").unwrap();
            writer.file(&LayoutPath::of_blob(&digest), b"blob").unwrap();
            writer.file("empty", b"").unwrap();
        });
        let expected = [
            (LayoutPath::Layout, b"{}".to_vec()),
            (LayoutPath::Blob(digest), b"blob".to_vec()),
            (LayoutPath::Other, Vec::new()),
        ];
        assert_eq!(files(&bytes).unwrap(), expected);
        let size = occupied(2) + occupied(0) + occupied(4) + occupied(0) + END;
        assert_eq!(bytes.len() as u64, size);
    }

    #[test]
    fn a_compressed_archive_is_read_and_its_end_checked() {
        let bytes = archive(|writer| writer.file("index.json", &[7; 100_000]).unwrap());
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&bytes).unwrap();
        let mut compressed = encoder.finish().unwrap();
        assert_eq!(files(&compressed).unwrap().len(), 1);
        compressed.truncate(compressed.len() - 4);
        assert!(matches!(files(&compressed), Err(ImportError::Archive(_))));
    }

    #[test]
    fn what_a_layout_does_not_have_is_refused() {
        for kind in [
            EntryType::Symlink,
            EntryType::Link,
            EntryType::Char,
            EntryType::Block,
            EntryType::Fifo,
            EntryType::new(b'?'),
        ] {
            let refused = files(&entry(kind, b"index.json", 0));
            assert!(
                matches!(refused, Err(ImportError::Refused { .. })),
                "{kind:?}"
            );
        }
        for name in [&b"../index.json"[..], b"/index.json", b"blobs/../../x"] {
            let refused = files(&entry(EntryType::Regular, name, 0));
            assert!(
                matches!(refused, Err(ImportError::Refused { .. })),
                "{name:?}"
            );
        }
    }

    #[test]
    fn an_archive_that_is_cut_is_not_read() {
        let bytes = archive(|writer| writer.file("index.json", &[7; 2000]).unwrap());
        for length in [1, 3, 100, 511, 513, 1000, 512 + 2000, 512 + 2001] {
            let cut = each_file(&bytes[..length], |_, _, _| Ok(()));
            assert!(cut.is_err(), "{length} bytes");
        }
        assert!(files(&[]).is_err());
        assert!(files(&bytes).is_ok());
    }

    #[test]
    fn headers_that_would_fill_the_memory_are_refused() {
        let mut bytes = entry(EntryType::GNULongName, b"././@LongLink", 1 << 40);
        bytes.resize(bytes.len() + 1024 * 1024, b'a');
        assert!(matches!(files(&bytes), Err(ImportError::Archive(_))));
    }

    #[test]
    fn absurd_sizes_are_an_error() {
        for size in [u64::MAX, u64::MAX - 511, 1 << 62] {
            assert!(files_unread(&entry(EntryType::Regular, b"index.json", size)).is_err());
        }
    }

    fn files_unread(bytes: &[u8]) -> Result<(), ImportError> {
        each_file(bytes, |_, _, _| Ok(()))
    }

    #[test]
    fn nothing_may_follow_the_end() {
        let mut bytes = archive(|writer| writer.file("index.json", b"{}").unwrap());
        bytes.resize(bytes.len() + 10_240, 0);
        assert!(files(&bytes).is_ok());
        bytes.extend(archive(|writer| writer.file("index.json", b"[]").unwrap()));
        assert!(matches!(files(&bytes), Err(ImportError::NotALayout(_))));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes: Vec<u8>, prefix in 0usize..3) {
            let prefix = match prefix {
                0 => Vec::new(),
                1 => entry(EntryType::Regular, b"index.json", 3),
                _ => vec![0x1f, 0x8b, 8, 0],
            };
            let _ = files_unread(&[prefix, bytes].concat());
        }
    }
}
