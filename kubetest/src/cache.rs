//! What clusters are made of: programs and image archives, built once and kept.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The directory of built programs (`bin/`), CNI plugins (`cni/`) and image archives (`images/*.tar`).
#[derive(Clone, Debug)]
pub struct Cache {
    dir: PathBuf,
    names: BTreeMap<String, String>,
}

/// Where distributions put the reference plugins.
const SYSTEM_PLUGINS: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];

/// Programs that every cluster runs.
const PROGRAMS: [&str; 9] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kubectl",
    "containerd",
    "containerd-shim-runc-v2",
    "ctr",
];

// === impl Cache ===

impl Cache {
    /// The cache in `dir`.
    ///
    /// # Errors
    /// A program or the images' names are missing: which.
    pub fn open(dir: &Path) -> Result<Self> {
        let next = "next: cargo xtask kube build";
        for program in PROGRAMS {
            if !dir.join("bin").join(program).exists() {
                bail!("{}/bin has no {program}\n  {next}", dir.display());
            }
        }
        let path = dir.join("images/names.env");
        let text = fs::read_to_string(&path).with_context(|| format!("read {}\n  {next}", path.display()))?;
        let names = text
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        Ok(Self {
            dir: dir.to_owned(),
            names,
        })
    }

    /// The directory itself.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The directory of programs.
    pub fn bin(&self) -> PathBuf {
        self.dir.join("bin")
    }

    /// The path of a program.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin().join(name)
    }

    /// The reference of an image by its variable in `names.env`, such as `AGNHOST`.
    ///
    /// # Errors
    /// There is no such image.
    pub fn image(&self, name: &str) -> Result<&str> {
        self.names
            .get(name)
            .map(String::as_str)
            .with_context(|| format!("{}/images/names.env names no {name}", self.dir.display()))
    }

    /// All image archives.
    ///
    /// # Errors
    /// The directory can't be read, or is without any.
    pub fn archives(&self) -> Result<Vec<PathBuf>> {
        let dir = self.dir.join("images");
        let mut found: Vec<PathBuf> = fs::read_dir(&dir)
            .with_context(|| format!("list {}", dir.display()))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "tar"))
            .collect();
        found.sort();
        if found.is_empty() {
            bail!(
                "{} holds no image archive\n  next: cargo xtask kube build",
                dir.display()
            );
        }
        Ok(found)
    }

    /// The directory of the reference CNI plugins: built ones, or else the distribution's.
    ///
    /// # Errors
    /// There are none.
    pub fn plugins(&self) -> Result<PathBuf> {
        let built = self.dir.join("cni");
        std::iter::once(built)
            .chain(SYSTEM_PLUGINS.map(PathBuf::from))
            .find(|dir| dir.join("portmap").exists())
            .context("the reference CNI plugins are missing\n  next: cargo xtask kube build, or install containernetworking-plugins")
    }
}
