//! The ledger's file: opened with suspicion, written in transactions.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::backends::FileBackend;
use redb::{Builder, Database, ReadableDatabase, ReadableTable, TableDefinition};

use super::error::LedgerError;
use super::record::{Entry, Quarantined};
use super::state::{Changes, HeldBlock, State};

/// `format` → the version of the layout below.
const META: TableDefinition<'_, &str, u32> = TableDefinition::new("meta");
/// Position → a block, in JSON.
const BLOCKS: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("blocks");
/// Address (host byte order) → its [`Entry`], in JSON. The address is the key,
/// so that two owners of one address can't even be written down.
const ADDRESSES: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("addresses");

const FORMAT: u32 = 1;

/// redb's default is 1 GiB; a full ledger of 4,096 addresses has about 2 MiB.
const CACHE_BYTES: usize = 4 << 20;

/// Where the database lives. Tests put one in memory whose power can be cut.
pub(super) type Open = Box<dyn FnMut() -> Result<Database, LedgerError> + Send>;

/// A failed attempt to open, and what the next one needs.
pub(super) type Failed = (LedgerError, PathBuf, Open);

pub(super) struct Store {
    path: PathBuf,
    open: Open,
    database: Database,
}

/// Opens the file at `path`, or makes it.
///
/// A new ledger is made beside its place and moved there whole, so that a file
/// which is short or empty is a damaged ledger and never taken for a new one.
pub(super) fn open_file(path: &Path) -> Result<Database, LedgerError> {
    let io = |operation| io_error(operation, path);
    let file = match open_existing(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            create(path).map_err(|error| from_redb(path, error))?;
            open_existing(path).map_err(io("opening ledger"))?
        }
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
            return Err(LedgerError::Untrusted {
                path: path.to_owned(),
                reason: "is a symbolic link, which could lead anywhere".to_owned(),
            });
        }
        Err(error) => return Err(io("opening ledger")(error)),
    };
    check_trust(path, &file.metadata().map_err(io("reading the mode of ledger"))?)?;
    let backend = FileBackend::new(file).map_err(|error| from_redb(path, error.into()))?;
    builder()
        .create_with_backend(backend)
        .map_err(|error| from_redb(path, error.into()))
}

// === impl Store ===

impl Store {
    /// Opens the database and reads everything in it.
    pub(super) fn open(path: &Path, open: Open) -> Result<(Self, State), LedgerError> {
        Self::try_open(path.to_owned(), open).map_err(|(error, ..)| error)
    }

    /// As [`Store::open`]; on failure gives back what another attempt needs.
    pub(super) fn try_open(path: PathBuf, mut open: Open) -> Result<(Self, State), Failed> {
        let opened = open().and_then(|database| Ok((load(&path, &database)?, database)));
        match opened {
            Ok((state, database)) => {
                let store = Self { path, open, database };
                Ok((store, state))
            }
            Err(error) => Err((error, path, open)),
        }
    }

    /// Opens the database anew after a failed transaction: redb refuses to go
    /// on, and what the disk holds now is the truth.
    pub(super) fn reopen(self) -> Result<(Self, State), Failed> {
        drop(self.database);
        Self::try_open(self.path, self.open)
    }

    /// Writes all changes or none; they are on the disk when this returns.
    pub(super) fn write(&self, changes: &Changes) -> Result<(), LedgerError> {
        self.try_write(changes).map_err(|cause| LedgerError::Write {
            path: self.path.clone(),
            cause: Arc::new(cause),
        })
    }

    fn try_write(&self, changes: &Changes) -> Result<(), redb::Error> {
        let transaction = self.database.begin_write()?;
        {
            let mut addresses = transaction.open_table(ADDRESSES)?;
            for (address, record) in &changes.addresses {
                match record {
                    None => addresses.remove(address.to_bits())?,
                    Some(entry) => addresses.insert(address.to_bits(), json(entry)?.as_slice())?,
                };
            }
            if let Some(held) = &changes.blocks {
                let mut blocks = transaction.open_table(BLOCKS)?;
                blocks.retain(|_, _| false)?;
                for (position, block) in (0..).zip(held) {
                    blocks.insert(position, json(block)?.as_slice())?;
                }
            }
        }
        // The default durability: the file is synced before commit returns.
        transaction.commit()?;
        Ok(())
    }
}

fn builder() -> Builder {
    let mut builder = Database::builder();
    builder
        .set_cache_size(CACHE_BYTES)
        // Reads and checks the whole file, which is small, at every start:
        // damage is found here and not by a pod that gets another's address.
        .set_check_integrity_on_open(true);
    builder
}

/// Makes an in-memory or new database a ledger.
pub(super) fn initialise(database: &Database) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    transaction.open_table(META)?.insert("format", FORMAT)?;
    transaction.open_table(BLOCKS)?;
    transaction.open_table(ADDRESSES)?;
    transaction.commit()?;
    Ok(())
}

#[cfg(any(test, feature = "disk"))]
pub(super) fn open_backend(path: &Path, backend: impl redb::StorageBackend) -> Result<Database, LedgerError> {
    builder()
        .create_with_backend(backend)
        .map_err(|error| from_redb(path, error.into()))
}

fn create(path: &Path) -> Result<(), redb::Error> {
    let directory = path.parent().unwrap_or(Path::new("."));
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    let new = path.with_extension("new");
    // Left by a start that was cut short; never served from.
    remove_if_there(&new)?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)?;
    let backend = FileBackend::new(file)?;
    let database = builder().create_with_backend(backend)?;
    initialise(&database)?;
    database.close()?;
    fs::rename(&new, path)?;
    File::open(directory)?.sync_all()?;
    Ok(())
}

/// Removes what an earlier try to make a ledger at `draft` left.
pub(super) fn clear(draft: &Path) -> Result<(), LedgerError> {
    remove_if_there(draft).map_err(io_error("removing", draft))
}

/// Puts `new` in the place of a damaged ledger, which gets a name that nothing has.
pub(super) fn replace_damaged(path: &Path, new: &Path) -> Result<PathBuf, LedgerError> {
    let replace = || -> io::Result<PathBuf> {
        let aside = (1..)
            .map(|number| path.with_extension(format!("damaged-{number}")))
            .find_map(|aside| match fs::hard_link(path, &aside) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => None,
                linked => Some(linked.map(|()| aside)),
            });
        let aside = aside.unwrap_or_else(|| Err(io::ErrorKind::AlreadyExists.into()))?;
        fs::rename(new, path)?;
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()?;
        Ok(aside)
    };
    replace().map_err(io_error("setting aside ledger", path))
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LedgerError {
    let path = path.to_owned();
    move |cause| LedgerError::Io {
        operation,
        path,
        cause: Arc::new(cause),
    }
}

fn open_existing(path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path)
}

fn check_trust(path: &Path, metadata: &fs::Metadata) -> Result<(), LedgerError> {
    let untrusted = |reason: String| LedgerError::Untrusted {
        path: path.to_owned(),
        reason,
    };
    let own = rustix::process::geteuid().as_raw();
    if !metadata.is_file() {
        Err(untrusted("is no regular file".to_owned()))
    } else if metadata.uid() != own {
        Err(untrusted(format!(
            "belongs to uid {}, not to {own}",
            metadata.uid()
        )))
    } else if metadata.mode() & 0o022 != 0 {
        Err(untrusted(format!(
            "mode {:04o} lets others write to it",
            metadata.mode() & 0o7777
        )))
    } else if metadata.len() == 0 {
        Err(LedgerError::Damaged {
            path: path.to_owned(),
            reason: "it is empty".to_owned(),
        })
    } else {
        Ok(())
    }
}

fn load(path: &Path, database: &Database) -> Result<State, LedgerError> {
    let (format, blocks, entries) = read(database).map_err(|error| from_redb(path, error))?;
    let damaged = |reason: String| LedgerError::Damaged {
        path: path.to_owned(),
        reason,
    };
    match format {
        None => return Err(damaged("it has no format version".to_owned())),
        Some(found) if found > FORMAT => {
            return Err(LedgerError::Version {
                path: path.to_owned(),
                found,
                known: FORMAT,
            });
        }
        Some(_) => {}
    }
    let blocks = blocks
        .iter()
        .map(|bytes| serde_json::from_slice::<HeldBlock>(bytes))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| damaged(format!("a block can't be read: {error}")))?;
    Ok(State::restore(blocks, entries))
}

type Contents = (Option<u32>, Vec<Vec<u8>>, BTreeMap<Ipv4Addr, Entry>);

fn read(database: &Database) -> Result<Contents, redb::Error> {
    let transaction = database.begin_read()?;
    let format = match transaction.open_table(META) {
        Ok(meta) => meta.get("format")?.map(|format| format.value()),
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok((None, vec![], BTreeMap::new())),
        Err(error) => return Err(error.into()),
    };
    if format.is_none_or(|format| format > FORMAT) {
        return Ok((format, vec![], BTreeMap::new()));
    }
    let mut blocks = Vec::new();
    for row in transaction.open_table(BLOCKS)?.iter()? {
        blocks.push(row?.1.value().to_vec());
    }
    let mut entries = BTreeMap::new();
    for row in transaction.open_table(ADDRESSES)?.iter()? {
        let (address, bytes) = row?;
        let address = Ipv4Addr::from_bits(address.value());
        // One record that can't be read costs one address, not the node.
        let entry = serde_json::from_slice::<Entry>(bytes.value()).unwrap_or_else(|error| {
            Entry::Quarantined(Quarantined {
                reason: format!("its record can't be read: {error}"),
                owner: None,
            })
        });
        entries.insert(address, entry.at(address));
    }
    Ok((format, blocks, entries))
}

fn json<T: serde::Serialize>(value: &T) -> Result<Vec<u8>, redb::Error> {
    serde_json::to_vec(value).map_err(|error| redb::Error::Io(error.into()))
}

fn from_redb(path: &Path, error: redb::Error) -> LedgerError {
    let path = path.to_owned();
    let damaged = |path, reason| LedgerError::Damaged { path, reason };
    match error {
        redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch => LedgerError::InUse { path },
        redb::Error::Io(cause)
            if matches!(
                cause.kind(),
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
            ) =>
        {
            damaged(path, cause.to_string())
        }
        redb::Error::Io(cause) => LedgerError::Io {
            operation: "opening ledger",
            path,
            cause: Arc::new(cause),
        },
        other => damaged(path, other.to_string()),
    }
}
