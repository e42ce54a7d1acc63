//! Writes OCI image archives: a tar of an [image layout], which `ctr images import`, `podman load` and `skopeo` take.
//!
//! No container engine has a part in it, and nothing of the machine gets in: entries are sorted, owned by root and
//! dated [`SOURCE_DATE_EPOCH`], so that equal contents give an equal digest wherever and whenever they are packed.
//!
//! [image layout]: https://github.com/opencontainers/image-spec/blob/v1.1.1/image-layout.md
//! [`SOURCE_DATE_EPOCH`]: https://reproducible-builds.org/specs/source-date-epoch/

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// What an image holds: paths below its root, each with its parents.
#[derive(Debug, Default)]
pub struct Tree(BTreeMap<PathBuf, Node>);

#[derive(Debug)]
enum Node {
    Directory { mode: u32 },
    File { content: Content, mode: u32 },
    Symlink { target: PathBuf },
}

#[derive(Debug)]
enum Content {
    Bytes(Vec<u8>),
    /// A file of this machine, read when the image is written.
    Path(PathBuf),
}

/// How the layer is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// For archives that are imported on the machine that made them.
    None,
    /// For archives that travel.
    Gzip,
}

/// An image of one layer, for the architecture that this program was built for.
#[derive(Debug)]
pub struct Image {
    /// References under which an import finds it, such as `localhost/weft:0.1.0`. At least one.
    pub names: Vec<String>,
    /// The object `config` of the image configuration: `Entrypoint`, `Env`, `Labels`, ….
    pub config: Value,
    /// Its files.
    pub tree: Tree,
    /// How the layer is stored.
    pub compression: Compression,
}

/// Passes on what is written and keeps its SHA-256 and size.
struct Hashing<W> {
    inner: W,
    hash: Sha256,
    size: u64,
}

// === impl Tree ===

impl Tree {
    /// Adds an empty directory, with `mode` as in chmod(2).
    pub fn directory(&mut self, path: impl AsRef<Path>, mode: u32) {
        self.insert(path.as_ref(), Node::Directory { mode });
    }

    /// Adds a file with the bytes of `source` on this machine. It is read when the image is written.
    pub fn file(&mut self, path: impl AsRef<Path>, source: impl Into<PathBuf>, mode: u32) {
        let content = Content::Path(source.into());
        self.insert(path.as_ref(), Node::File { content, mode });
    }

    /// Adds a file with these bytes.
    pub fn bytes(&mut self, path: impl AsRef<Path>, bytes: impl Into<Vec<u8>>, mode: u32) {
        let content = Content::Bytes(bytes.into());
        self.insert(path.as_ref(), Node::File { content, mode });
    }

    /// Adds a symbolic link, or replaces what is there by it.
    pub fn symlink(&mut self, path: impl AsRef<Path>, target: impl Into<PathBuf>) {
        let target = target.into();
        self.insert(path.as_ref(), Node::Symlink { target });
    }

    /// Takes an entry out again. A directory's contents stay.
    pub fn remove(&mut self, path: impl AsRef<Path>) {
        self.0.remove(relative(path.as_ref()));
    }

    /// True if there is an entry of this path.
    pub fn contains(&self, path: impl AsRef<Path>) -> bool {
        self.0.contains_key(relative(path.as_ref()))
    }

    fn insert(&mut self, path: &Path, node: Node) {
        let path = relative(path);
        for parent in path.ancestors().skip(1).filter(|p| !p.as_os_str().is_empty()) {
            self.0
                .entry(parent.to_path_buf())
                .or_insert(Node::Directory { mode: 0o755 });
        }
        self.0.insert(path.to_path_buf(), node);
    }

    /// Writes the entries as a tar.
    fn write<W: Write>(&self, out: W, mtime: u64) -> Result<W> {
        let mut tar = tar::Builder::new(out);
        for (path, node) in &self.0 {
            let mut header = tar::Header::new_gnu();
            header.set_mtime(mtime);
            header.set_uid(0);
            header.set_gid(0);
            header.set_size(0);
            match node {
                Node::Directory { mode } => {
                    header.set_entry_type(tar::EntryType::Directory);
                    header.set_mode(*mode);
                    // A directory's name ends in a slash.
                    tar.append_data(&mut header, path.join(""), io::empty())
                }
                Node::Symlink { target } => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    header.set_mode(0o777);
                    tar.append_link(&mut header, path, target)
                }
                Node::File { content, mode } => {
                    header.set_entry_type(tar::EntryType::Regular);
                    header.set_mode(*mode);
                    match content {
                        Content::Bytes(bytes) => {
                            header.set_size(bytes.len() as u64);
                            tar.append_data(&mut header, path, bytes.as_slice())
                        }
                        Content::Path(source) => append_file(&mut tar, &mut header, path, source),
                    }
                }
            }
            .with_context(|| format!("pack /{}", path.display()))?;
        }
        tar.into_inner().context("end the layer")
    }
}

fn relative(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

fn append_file<W: Write>(
    tar: &mut tar::Builder<W>,
    header: &mut tar::Header,
    path: &Path,
    source: &Path,
) -> io::Result<()> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", source.display()));
    let file = File::open(source).map_err(named)?;
    let size = file.metadata().map_err(named)?.len();
    header.set_size(size);
    tar.append_data(header, path, file.take(size))
}

// === impl Image ===

impl Image {
    /// Writes the archive to `out`, by a temporary name beside it, and returns the digest of its manifest.
    ///
    /// # Errors
    /// A file can't be read or written, there is no name, or `SOURCE_DATE_EPOCH` is no number of seconds.
    pub fn write(&self, out: &Path) -> Result<String> {
        let mtime = source_date_epoch()?;
        let dir = out.parent().context("an archive has a name")?;
        let writing = || format!("write {}", out.display());
        std::fs::create_dir_all(dir).with_context(writing)?;

        // The layer's digest is its name in the archive and so must be known before it is put there.
        let mut layer = tempfile::tempfile_in(dir).with_context(writing)?;
        let (diff_id, blob) = self.write_layer(&mut layer, mtime)?;
        layer.rewind().with_context(writing)?;

        let media_type = match self.compression {
            Compression::None => LAYER.to_owned(),
            Compression::Gzip => format!("{LAYER}+gzip"),
        };
        let created = jiff::Timestamp::from_second(mtime.try_into()?)
            .context("SOURCE_DATE_EPOCH")?
            .to_string();
        let config = json!({
            "created": created,
            "architecture": architecture(),
            "os": "linux",
            "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
            "history": [{"created": created, "created_by": "cargo xtask"}],
        })
        .to_string();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": digest(config.as_bytes()), "size": config.len()},
            "layers": [{"mediaType": media_type, "digest": blob.0, "size": blob.1}],
        })
        .to_string();
        let manifest_digest = digest(manifest.as_bytes());
        let index = self.index(&manifest_digest, manifest.len())?;

        let staged = tempfile::NamedTempFile::new_in(dir).with_context(writing)?;
        let mut tar = tar::Builder::new(io::BufWriter::new(staged));
        let mut put = |name: &str, size: u64, content: &mut dyn Read| {
            let mut header = tar::Header::new_gnu();
            header.set_mtime(mtime);
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_size(size);
            tar.append_data(&mut header, name, content).with_context(writing)
        };
        let mut text = |name: &str, text: &str| put(name, text.len() as u64, &mut text.as_bytes());
        text("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        text("index.json", &index)?;
        text(&blob_path(&digest(config.as_bytes())), &config)?;
        text(&blob_path(&manifest_digest), &manifest)?;
        put(&blob_path(&blob.0), blob.1, &mut io::BufReader::new(layer))?;
        let staged = tar
            .into_inner()
            .and_then(|buffer| buffer.into_inner().map_err(io::IntoInnerError::into_error))
            .with_context(writing)?;
        set_readable(staged.as_file()).with_context(writing)?;
        staged.persist(out).with_context(writing)?;
        Ok(manifest_digest)
    }

    /// Returns the digest of the tar, and digest and size of it as stored.
    fn write_layer(&self, file: &mut File, mtime: u64) -> Result<(String, (String, u64))> {
        let stored = Hashing::new(io::BufWriter::new(file));
        Ok(match self.compression {
            Compression::None => {
                let stored = self.tree.write(stored, mtime)?.finish()?;
                (stored.0.clone(), stored)
            }
            Compression::Gzip => {
                let gzip = GzEncoder::new(stored, flate2::Compression::default());
                let plain = self.tree.write(Hashing::new(gzip), mtime)?;
                let diff_id = named(plain.hash.finalize().as_slice());
                (
                    diff_id,
                    plain.inner.finish().context("compress the layer")?.finish()?,
                )
            }
        })
    }

    fn index(&self, manifest: &str, size: usize) -> Result<String> {
        if self.names.is_empty() {
            bail!("an image without a name could not be found after its import");
        }
        let manifests: Vec<_> = self
            .names
            .iter()
            .map(|name| {
                json!({
                    "mediaType": MANIFEST,
                    "digest": manifest,
                    "size": size,
                    "platform": {"architecture": architecture(), "os": "linux"},
                    "annotations": {
                        "io.containerd.image.name": name,
                        "org.opencontainers.image.ref.name": tag(name),
                    },
                })
            })
            .collect();
        Ok(json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}).to_string())
    }
}

// === impl Hashing ===

impl<W: Write> Hashing<W> {
    fn new(inner: W) -> Self {
        Self {
            inner,
            hash: Sha256::new(),
            size: 0,
        }
    }

    /// Digest and size of what was written.
    fn finish(mut self) -> Result<(String, u64)> {
        self.inner.flush().context("write the layer")?;
        Ok((named(self.hash.finalize().as_slice()), self.size))
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(buf)?;
        self.hash.update(&buf[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// What follows the last colon of a reference, if that is no port of a registry.
fn tag(name: &str) -> &str {
    name.rsplit_once(':').map_or(
        "latest",
        |(_, tag)| if tag.contains('/') { "latest" } else { tag },
    )
}

/// The architecture of this build, by its name in Go and so in image indices.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn digest(bytes: &[u8]) -> String {
    named(Sha256::digest(bytes).as_slice())
}

/// A SHA-256 as the format writes it.
fn named(hash: &[u8]) -> String {
    hash.iter()
        .fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

fn blob_path(digest: &str) -> String {
    format!("blobs/{}", digest.replacen(':', "/", 1))
}

/// Temporary files are their owner's alone; an archive is for everybody.
fn set_readable(file: &File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(std::fs::Permissions::from_mode(0o644))
}

fn source_date_epoch() -> Result<u64> {
    const NAME: &str = "SOURCE_DATE_EPOCH";
    match std::env::var(NAME) {
        Ok(text) => text
            .parse()
            .with_context(|| format!("{NAME} is `{text}`, which is no number of seconds since 1970")),
        Err(_) => Ok(0),
    }
}
