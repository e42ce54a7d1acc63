//! Weft's own image: the two static binaries and nothing else.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use object::Endianness;
use object::elf::PT_INTERP;
use object::read::elf::{ElfFile64, ProgramHeader};
use serde_json::json;

use crate::oci::{Compression, Image, Tree};

/// The reference under which an import finds the image.
pub const REFERENCE: &str = concat!("localhost/weft:", env!("CARGO_PKG_VERSION"));

/// Arguments of `weft-kubetest image`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The `weft` binary, static
    #[arg(long, value_name = "FILE")]
    weft: PathBuf,
    /// The `weft-cni` binary, static
    #[arg(long, value_name = "FILE")]
    weft_cni: PathBuf,
    /// The archive to write
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

// === impl Args ===

impl Args {
    /// Writes the archive and returns the digest of the image.
    ///
    /// # Errors
    /// A binary is missing or not static, or the archive can't be written.
    pub fn run(&self) -> Result<String> {
        let mut tree = Tree::default();
        for (path, file) in [("usr/bin/weft", &self.weft), ("usr/bin/weft-cni", &self.weft_cni)] {
            refuse_dynamic(file)?;
            tree.file(path, file, 0o755);
        }
        // Where runtimes mount resolv.conf and hosts, and what programs without a writable root expect.
        tree.directory("etc", 0o755);
        tree.directory("run", 0o755);
        tree.directory("tmp", 0o1777);
        let image = Image {
            names: vec![REFERENCE.into()],
            config: json!({
                "Entrypoint": ["/usr/bin/weft"],
                "Env": ["PATH=/usr/bin"],
                "Labels": {
                    "org.opencontainers.image.description": "Weft: overlay network for Kubernetes",
                    "org.opencontainers.image.licenses": env!("CARGO_PKG_LICENSE"),
                    "org.opencontainers.image.source": env!("CARGO_PKG_REPOSITORY"),
                    "org.opencontainers.image.title": "weft",
                    "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
                },
            }),
            tree,
            compression: Compression::Gzip,
        };
        image.write(&self.output)
    }
}

/// The image has no C library and no loader: a binary that asks for them would not start in it.
fn refuse_dynamic(file: &Path) -> Result<()> {
    let data = std::fs::read(file).with_context(|| format!("read {}", file.display()))?;
    let elf = ElfFile64::<Endianness>::parse(&*data)
        .with_context(|| format!("{} is no 64-bit ELF program", file.display()))?;
    let dynamic = elf
        .elf_program_headers()
        .iter()
        .any(|header| header.p_type(elf.endian()) == PT_INTERP);
    if dynamic {
        bail!(
            "{} is linked dynamically, and the image has no C library\n  next: cargo xtask image",
            file.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_needs_a_loader_is_refused() {
        // Test programs are what a plain `cargo build` makes for this host.
        let own = std::env::current_exe().unwrap();
        let error = refuse_dynamic(&own).unwrap_err().to_string();
        assert!(error.contains("is linked dynamically"), "{error}");
    }
}
