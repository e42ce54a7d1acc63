//! Programs of other projects, built from their Go modules into a directory that later runs find.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{netns, print};

/// A project, in the version that is measured.
#[derive(Debug)]
pub(crate) struct Project {
    pub(crate) name: &'static str,
    pub(crate) module: &'static str,
    pub(crate) version: &'static str,
    /// Programs and their packages, `./` for the module itself.
    programs: &'static [(&'static str, &'static str)],
    /// Where the linker puts the version.
    version_variable: Option<&'static str>,
    how: How,
}

#[derive(Debug)]
enum How {
    /// In a module that requires it.
    Required,
    /// In a copy of its sources, with lines of a file left out or a requirement changed.
    Copied {
        /// A file, and a text by which its lines to leave out are known.
        without: Option<(&'static str, &'static str)>,
        requires: Option<&'static str>,
        cgo: bool,
    },
}

pub(crate) const PLUGINS: Project = Project {
    name: "plugins",
    module: "github.com/containernetworking/plugins",
    version: "v1.9.1",
    programs: &[
        (
            "bridge",
            "github.com/containernetworking/plugins/plugins/main/bridge",
        ),
        ("ptp", "github.com/containernetworking/plugins/plugins/main/ptp"),
        (
            "host-local",
            "github.com/containernetworking/plugins/plugins/ipam/host-local",
        ),
    ],
    version_variable: None,
    how: How::Required,
};

pub(crate) const ETCD: Project = Project {
    name: "etcd",
    module: "go.etcd.io/etcd/server/v3",
    version: "v3.7.3",
    programs: &[("etcd", "go.etcd.io/etcd/server/v3")],
    version_variable: None,
    how: How::Required,
};

pub(crate) const FLANNEL: Project = Project {
    name: "flannel",
    module: "github.com/flannel-io/flannel",
    version: "v0.28.10",
    programs: &[("flanneld", "./")],
    version_variable: Some("github.com/flannel-io/flannel/pkg/version.Version"),
    how: How::Copied {
        // The library of this cloud's back end can't be had from module proxies.
        without: Some(("main.go", "backend/tencentvpc\"")),
        requires: None,
        // Its back end `udp` is C.
        cgo: true,
    },
};

pub(crate) const CILIUM: Project = Project {
    name: "cilium",
    module: "github.com/cilium/cilium",
    version: "v1.20.2",
    programs: &[
        ("cilium-cni", "./plugins/cilium-cni"),
        ("cilium-agent", "./daemon"),
    ],
    version_variable: Some("github.com/cilium/cilium/pkg/version.ciliumVersion"),
    how: How::Copied {
        without: None,
        // Nor can the revision of GoBGP that it asks for, which only its BGP control plane uses.
        requires: Some("github.com/osrg/gobgp/v4@v4.7.0"),
        cgo: false,
    },
};

// === impl Project ===

impl Project {
    /// The directory with the programs, built first where they are not there.
    ///
    /// # Errors
    /// There is no Go, or it can't build them.
    pub(crate) fn programs(&self, cache: &Path) -> Result<PathBuf> {
        let dir = self.dir(cache).join("bin");
        if self.programs.iter().all(|(name, _)| dir.join(name).exists()) {
            return Ok(dir);
        }
        print::note(&format!("building {} {}", self.module, self.version));
        std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        let sources = self.prepare(cache)?;
        for (name, package) in self.programs {
            // Only what is whole has the name.
            let staged = dir.join(format!(".{name}.new"));
            let flags = self.version_variable.map_or("-s -w".into(), |variable| {
                format!("-s -w -X {variable}={}", self.version.trim_start_matches('v'))
            });
            let mut go = self.go(&sources, &["build", "-trimpath", "-ldflags", &flags, "-o"]);
            netns::run(go.arg(&staged).arg(package))?;
            std::fs::rename(&staged, dir.join(name)).with_context(|| format!("name {}", staged.display()))?;
        }
        Ok(dir)
    }

    /// The project's sources, where they were copied to build it.
    pub(crate) fn sources(&self, cache: &Path) -> PathBuf {
        self.dir(cache).join("src")
    }

    fn dir(&self, cache: &Path) -> PathBuf {
        cache.join(format!("{}-{}", self.name, self.version))
    }

    /// A directory in which Go can build the programs.
    fn prepare(&self, cache: &Path) -> Result<PathBuf> {
        let sources = self.sources(cache);
        match std::fs::remove_dir_all(&sources) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("remove {}", sources.display()));
            }
            _ => {}
        }
        let exact = format!("{}@{}", self.module, self.version);
        match &self.how {
            How::Required => {
                std::fs::create_dir_all(&sources).with_context(|| format!("create {}", sources.display()))?;
                netns::run(&mut self.go(&sources, &["mod", "init", "bench"]))?;
                let packages = self
                    .programs
                    .iter()
                    .map(|(_, package)| format!("{package}@{}", self.version));
                netns::run(self.go(&sources, &["get", &exact]).args(packages))?;
            }
            How::Copied {
                without, requires, ..
            } => {
                let answer = netns::read(&mut self.go(cache, &["mod", "download", "-json", &exact]))?;
                let answer: serde_json::Value = serde_json::from_str(&answer).context("parse Go's answer")?;
                let original = answer["Dir"].as_str().context("Go names no directory")?;
                netns::run(
                    Command::new("cp")
                        .args(["-r", "--no-preserve=mode", original])
                        .arg(&sources),
                )?;
                if let Some((file, text)) = without {
                    let path = sources.join(file);
                    let all =
                        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
                    let rest: Vec<&str> = all.lines().filter(|line| !line.contains(text)).collect();
                    std::fs::write(&path, rest.join("\n"))
                        .with_context(|| format!("write {}", path.display()))?;
                }
                if let Some(requires) = requires {
                    netns::run(&mut self.go(&sources, &["mod", "edit", &format!("-require={requires}")]))?;
                }
            }
        }
        Ok(sources)
    }

    fn go(&self, dir: &Path, args: &[&str]) -> Command {
        let cgo = matches!(self.how, How::Copied { cgo: true, .. });
        let mut go = Command::new("go");
        go.args(args).current_dir(dir);
        go.env("CGO_ENABLED", if cgo { "1" } else { "0" });
        go.env("GOFLAGS", "-mod=mod -buildvcs=false").env("GOWORK", "off");
        go
    }
}

/// Asks for Go.
///
/// # Errors
/// There is none.
pub(crate) fn require_go() -> Result<()> {
    match Command::new("go").arg("version").output() {
        Err(error) if error.kind() == ErrorKind::NotFound => bail!(
            "there is no `go` in PATH, and peers are built with it\n  next: install Go (https://go.dev/dl, or the \
             package golang of most distributions)"
        ),
        Err(error) => Err(error).context("start go"),
        Ok(_) => Ok(()),
    }
}

/// Where builds are kept: `$XDG_CACHE_HOME/weft/bench` or `~/.cache/weft/bench`.
pub(crate) fn default_cache() -> Result<PathBuf> {
    let set = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let cache = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
    let cache = cache.context("neither XDG_CACHE_HOME nor HOME is set\n  next: give --cache DIR")?;
    Ok(cache.join("weft/bench"))
}
