//! The index on disk: a snapshot, and a journal of what changed since.
//!
//! Both are hints. A snapshot names its generation and a journal the generation it continues; one
//! that continues another is ignored, so a crash between writing the two loses nothing. Whatever
//! cannot be read is rebuilt from the files themselves.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use crate::oci::Digest;

use super::content::Identity;
use super::frames::{Frames, HEADER_LEN, Salt};
use super::index::{Event, Index, Known, Stamp};
use super::layout;

const SNAPSHOT: &str = "index";
const JOURNAL: &str = "index.journal";

/// Version of the payloads; another one is not read.
const FORMAT: u8 = 1;

/// A journal is folded into a new snapshot when it is longer than this and than the snapshot: short
/// enough to load quickly, long enough that a small store is not rewritten all the time.
const JOURNAL_MIN: u64 = 256 << 10;

/// Both files; the janitor's, or whoever flushes.
#[derive(Debug)]
pub(super) struct IndexFile {
    generation: u64,
    snapshot_len: u64,
    journal: Option<Journal>,
}

#[derive(Debug)]
struct Journal {
    file: File,
    salt: Salt,
    len: u64,
}

/// What was found on disk.
#[derive(Debug)]
pub(super) struct Loaded {
    /// The least recently used first.
    pub(super) blobs: Vec<(Digest, Known)>,
    /// False if anything was missing or damaged: then there are files that no entry tells of.
    pub(super) whole: bool,
}

impl IndexFile {
    /// Nothing read yet.
    pub(super) fn empty() -> Self {
        Self {
            generation: 0,
            snapshot_len: 0,
            journal: None,
        }
    }

    /// When what is there was last written, in seconds as the file system counts them.
    pub(super) fn written_at(root: &OwnedFd) -> Option<i64> {
        let changed =
            |name| rustix::fs::statat(root, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).ok();
        let times = [SNAPSHOT, JOURNAL].into_iter().filter_map(changed);
        times.map(|stat| stat.st_mtime).max()
    }

    /// Reads what is there. Never fails: what cannot be read is missing.
    pub(super) fn load(root: &OwnedFd) -> (Self, Loaded) {
        let mut this = Self::empty();
        let mut loaded = Loaded {
            blobs: Vec::new(),
            whole: false,
        };
        let Ok(bytes) = read_all(root, SNAPSHOT) else {
            return (this, loaded);
        };
        let Some(mut frames) = Frames::read(&bytes) else {
            return (this, loaded);
        };
        let Some(head) = frames.next().and_then(|(_, head)| Head::decode(head)) else {
            return (this, loaded);
        };
        this.generation = head.generation;
        this.snapshot_len = bytes.len() as u64;

        let mut sequence = 0u64;
        let mut blobs: HashMap<Digest, (u64, Known)> = HashMap::new();
        let mut apply = |event| {
            sequence += 1;
            match event {
                Event::Put(digest, known) => {
                    blobs.insert(digest, (sequence, known));
                }
                Event::Removed(digest) => {
                    blobs.remove(&digest);
                }
                Event::Used(digest, now) => {
                    if let Some((used, known)) = blobs.get_mut(&digest) {
                        *used = sequence;
                        known.last_use = now;
                    }
                }
            }
        };
        let mut found = 0;
        for (_, payload) in frames.by_ref() {
            if let Some(event) = decode(payload) {
                found += 1;
                apply(event);
            }
        }
        loaded.whole = head.complete && found == head.count;
        loaded.whole &= this.load_journal(root, &mut apply);
        if !loaded.whole {
            // What the walk finds is in no journal; a new snapshot is wanted.
            this.journal = None;
        }

        let mut blobs: Vec<_> = blobs.into_iter().collect();
        blobs.sort_unstable_by_key(|(_, (sequence, _))| *sequence);
        loaded.blobs = blobs
            .into_iter()
            .map(|(digest, (_, known))| (digest, known))
            .collect();
        (this, loaded)
    }

    /// Applies the journal if it continues the snapshot; false if part of it was damaged.
    fn load_journal(&mut self, root: &OwnedFd, apply: &mut impl FnMut(Event)) -> bool {
        let bytes = match read_all(root, JOURNAL) {
            Ok(bytes) => bytes,
            Err(error) => return error.kind() == io::ErrorKind::NotFound,
        };
        let Some(mut frames) = Frames::read(&bytes) else {
            return false;
        };
        let head = frames.next().and_then(|(_, head)| Head::decode(head));
        if head.is_none_or(|head| head.generation != self.generation) {
            return head.is_some();
        }
        for (_, payload) in frames.by_ref() {
            if let Some(event) = decode(payload) {
                apply(event);
            }
        }
        let len = frames.end() as u64;
        let opened = layout::open_for_append(root, JOURNAL).and_then(|file| {
            file.set_len(len)?;
            Ok(file)
        });
        // Without it the next flush writes a snapshot instead.
        self.journal = opened.ok().map(|file| Journal {
            file,
            salt: frames.salt(),
            len,
        });
        frames.skipped() == 0
    }

    /// Bytes on disk.
    pub(super) fn len(&self) -> u64 {
        self.snapshot_len + self.journal.as_ref().map_or(0, |journal| journal.len)
    }

    /// True if the next thing to write is a snapshot.
    pub(super) fn wants_snapshot(&self) -> bool {
        self.journal
            .as_ref()
            .is_none_or(|journal| journal.len > JOURNAL_MIN.max(self.snapshot_len))
    }

    /// Gives the journal up: changes were lost that it would need.
    pub(super) fn give_up_journal(&mut self) {
        self.journal = None;
    }

    /// Appends `events` to the journal, without sync: a hint may be lost.
    ///
    /// # Errors
    /// The disk's. The journal is then given up; the next snapshot starts another.
    pub(super) fn append(&mut self, events: &[Event]) -> io::Result<()> {
        let Some(mut journal) = self.journal.take() else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let mut frames = Vec::new();
        for event in events {
            journal.salt.append(&mut frames, &encode(event));
        }
        journal.file.write_all_at(&frames, journal.len)?;
        journal.len += frames.len() as u64;
        self.journal = Some(journal);
        Ok(())
    }

    /// Writes `snapshot`, as `encode_snapshot` made it, durably, and begins a new journal.
    ///
    /// # Errors
    /// The disk's. What was there before is then still valid.
    pub(super) fn replace(&mut self, root: &OwnedFd, snapshot: &Snapshot) -> io::Result<()> {
        layout::replace_file(root, SNAPSHOT, &snapshot.bytes)?;
        self.generation = snapshot.generation;
        self.snapshot_len = snapshot.bytes.len() as u64;
        self.journal = None;

        let salt = Salt::random();
        let mut bytes = salt.header().to_vec();
        salt.append(
            &mut bytes,
            &Head {
                generation: self.generation,
                complete: true,
                count: 0,
            }
            .encode(),
        );
        layout::replace_file(root, JOURNAL, &bytes)?;
        self.journal = Some(Journal {
            file: layout::open_for_append(root, JOURNAL)?,
            salt,
            len: bytes.len() as u64,
        });
        Ok(())
    }

    /// The whole of `index` as the next snapshot. Takes the events with it: they are in it.
    pub(super) fn snapshot(&self, index: &mut Index) -> Snapshot {
        index.take_events();
        let generation = self.generation.wrapping_add(1);
        let salt = Salt::random();
        let mut bytes = Vec::with_capacity(HEADER_LEN + 100 * (index.len() + 1));
        bytes.extend_from_slice(&salt.header());
        salt.append(
            &mut bytes,
            &Head {
                generation,
                complete: index.is_ready(),
                count: index.len() as u64,
            }
            .encode(),
        );
        for (digest, known) in index.in_order() {
            salt.append(&mut bytes, &encode(&Event::Put(digest, known)));
        }
        Snapshot { generation, bytes }
    }
}

/// A snapshot ready to be written.
#[derive(Debug)]
pub(super) struct Snapshot {
    generation: u64,
    bytes: Vec<u8>,
}

fn read_all(root: &OwnedFd, name: &str) -> io::Result<Vec<u8>> {
    let mut file = layout::open_file(root, name)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0));
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// First payload of a snapshot or a journal.
#[derive(Clone, Copy, Debug)]
struct Head {
    generation: u64,
    /// False for a snapshot made before the whole store was known.
    complete: bool,
    /// Blobs in a snapshot.
    count: u64,
}

impl Head {
    fn encode(self) -> Vec<u8> {
        let mut out = vec![FORMAT, u8::from(self.complete)];
        out.extend_from_slice(&self.generation.to_le_bytes());
        out.extend_from_slice(&self.count.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (&[format, complete], rest) = bytes.split_first_chunk::<2>()?;
        let (generation, rest) = rest.split_first_chunk::<8>()?;
        let (count, rest) = rest.split_first_chunk::<8>()?;
        (format == FORMAT && rest.is_empty()).then_some(Self {
            generation: u64::from_le_bytes(*generation),
            complete: complete != 0,
            count: u64::from_le_bytes(*count),
        })
    }
}

const PUT: u8 = 1;
const PUT_STAMPED: u8 = 2;
const REMOVED: u8 = 3;
const USED: u8 = 4;

fn encode(event: &Event) -> Vec<u8> {
    let begin = |kind: u8, digest: &Digest| {
        let mut out = Vec::with_capacity(96);
        out.push(kind);
        out.extend_from_slice(digest.as_bytes());
        out
    };
    match event {
        Event::Put(digest, known) => {
            let kind = if known.stamp.is_some() {
                PUT_STAMPED
            } else {
                PUT
            };
            let mut out = begin(kind, digest);
            out.extend_from_slice(&known.size.to_le_bytes());
            out.extend_from_slice(&known.last_use.to_le_bytes());
            if let Some(stamp) = &known.stamp {
                out.extend_from_slice(&stamp.when.to_le_bytes());
                out.extend_from_slice(&stamp.identity.inode.to_le_bytes());
                out.extend_from_slice(&stamp.identity.size.to_le_bytes());
                out.extend_from_slice(&stamp.identity.mtime.to_le_bytes());
                out.extend_from_slice(&stamp.identity.ctime.to_le_bytes());
            }
            out
        }
        Event::Removed(digest) => begin(REMOVED, digest),
        Event::Used(digest, now) => {
            let mut out = begin(USED, digest);
            out.extend_from_slice(&now.to_le_bytes());
            out
        }
    }
}

fn decode(payload: &[u8]) -> Option<Event> {
    let (kind, rest) = payload.split_first()?;
    let (digest, rest) = rest.split_first_chunk::<32>()?;
    let digest = Digest::from_sha256(*digest);
    let mut numbers = rest.chunks_exact(8).map(|chunk| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(chunk);
        bytes
    });
    let mut number = || numbers.next();
    let event = match *kind {
        PUT | PUT_STAMPED => Event::Put(
            digest,
            Known {
                size: u64::from_le_bytes(number()?),
                last_use: i64::from_le_bytes(number()?),
                stamp: if *kind == PUT_STAMPED {
                    Some(Stamp {
                        when: i64::from_le_bytes(number()?),
                        identity: Identity {
                            inode: u64::from_le_bytes(number()?),
                            size: u64::from_le_bytes(number()?),
                            mtime: i64::from_le_bytes(number()?),
                            ctime: i64::from_le_bytes(number()?),
                        },
                    })
                } else {
                    None
                },
            },
        ),
        REMOVED => Event::Removed(digest),
        USED => Event::Used(digest, i64::from_le_bytes(number()?)),
        _ => return None,
    };
    Some(event)
}

/// Any bytes as an entry of the index.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz_entry(data: &[u8]) {
    if let Some(event) = decode(data) {
        let encoded = encode(&event);
        let again = decode(&encoded).expect("our own");
        assert_eq!(encode(&again), encoded);
    }
    let _head = Head::decode(data);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(dir: &tempfile::TempDir) -> OwnedFd {
        File::open(dir.path()).unwrap().into()
    }

    fn known(size: u64, stamped: bool) -> Known {
        Known {
            size,
            last_use: -3,
            stamp: stamped.then_some(Stamp {
                when: 9,
                identity: Identity {
                    inode: 1,
                    size,
                    mtime: i64::MAX,
                    ctime: -1,
                },
            }),
        }
    }

    fn digest(n: u8) -> Digest {
        Digest::of(&[n])
    }

    /// A store of three blobs in a snapshot, the first of them used and the second removed since.
    fn written(root: &OwnedFd) -> IndexFile {
        let mut index = Index::default();
        index.set_ready();
        for n in 0..3 {
            index.put(digest(n), known(u64::from(n) << 33, n % 2 == 0));
        }
        let (mut file, loaded) = IndexFile::load(root);
        assert!(!loaded.whole && file.wants_snapshot());
        let snapshot = file.snapshot(&mut index);
        file.replace(root, &snapshot).unwrap();
        index.touch(&digest(0), 77);
        index.remove(&digest(1));
        file.append(&index.take_events()).unwrap();
        file
    }

    #[test]
    fn order_sizes_and_stamps_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let root = root(&dir);
        let len = written(&root).len();
        let (file, loaded) = IndexFile::load(&root);
        assert!(loaded.whole && !file.wants_snapshot());
        assert_eq!(file.len(), len);
        let used = Known {
            last_use: 77,
            ..known(0, true)
        };
        assert_eq!(
            loaded.blobs,
            [(digest(2), known(2 << 33, true)), (digest(0), used)]
        );
    }

    #[test]
    fn c05_a_journal_of_another_generation_is_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let root = root(&dir);
        let mut file = written(&root);
        let old = std::fs::read(dir.path().join(JOURNAL)).unwrap();
        let mut index = Index::default();
        index.set_ready();
        index.put(digest(9), known(1, false));
        let snapshot = file.snapshot(&mut index);
        file.replace(&root, &snapshot).unwrap();
        // As if the machine had stopped between the two.
        std::fs::write(dir.path().join(JOURNAL), old).unwrap();
        let (file, loaded) = IndexFile::load(&root);
        assert!(loaded.whole && file.wants_snapshot());
        assert_eq!(loaded.blobs, [(digest(9), known(1, false))]);
    }

    #[test]
    fn c05_whatever_the_files_hold_loading_is_safe_and_damage_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let root = root(&dir);
        written(&root);
        for name in [SNAPSHOT, JOURNAL] {
            let path = dir.path().join(name);
            let whole = std::fs::read(&path).unwrap();
            for at in HEADER_LEN..whole.len() {
                let mut bytes = whole.clone();
                bytes[at] ^= 0x10;
                std::fs::write(&path, &bytes).unwrap();
                assert!(!IndexFile::load(&root).1.whole, "{name} flipped at {at}");
            }
            std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
            IndexFile::load(&root);
            std::fs::write(&path, whole).unwrap();
            assert!(IndexFile::load(&root).1.whole);
        }
    }
}
