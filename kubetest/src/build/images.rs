//! The images that clusters and the upstream suites run, under the names that the suites ask for.
//!
//! They hold upstream's own programs where those are Go, and this machine's (bash, dig, nc, …) in place of the ones
//! that upstream takes from Alpine or Debian. nginx is busybox's httpd: the suites only want something on port 80.

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::build::go::Go;
use crate::build::recipe::MODULES;
use crate::oci::{Compression, Image, Tree};
use crate::progress::Progress;

/// Programs of this machine that images are made of, and the packages that have them on Debian.
const PROGRAMS: [(&str, &str); 14] = [
    ("bash", "bash"),
    ("busybox", "busybox-static"),
    ("conntrack", "conntrack"),
    ("curl", "curl"),
    ("dig", "bind9-dnsutils"),
    ("getent", "libc-bin"),
    ("host", "bind9-host"),
    ("ip", "iproute2"),
    ("iperf", "iperf"),
    ("iptables", "iptables"),
    ("nc.openbsd", "netcat-openbsd"),
    ("nft", "nftables"),
    ("nslookup", "bind9-dnsutils"),
    ("ss", "iproute2"),
];

/// Lists the references, one `NAME=reference` a line: written last, when all archives are whole.
const NAMES: &str = "images/names.env";
/// First line of that list: by what the archives were made.
const MADE_BY: &str = "# made by ";

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// True if the archives are missing, or were made by another state of this module.
pub(super) fn due(dir: &Path) -> Result<bool> {
    let path = dir.join(NAMES);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text.lines().next() != Some(&stamp())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

/// Names all programs at once that images would lack.
pub(super) fn refuse_missing_programs() -> Result<()> {
    let missing: Vec<_> = PROGRAMS
        .iter()
        .filter(|(name, _)| which(name).is_none())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = missing.iter().map(|(name, _)| *name).collect();
    let mut packages: Vec<_> = missing.iter().map(|(_, package)| *package).collect();
    packages.dedup();
    bail!(
        "test images are made of programs that this machine lacks: {}\n  next: apt-get install {}   (names of Debian's \
         packages; a static busybox)",
        names.join(", "),
        packages.join(" ")
    );
}

/// Writes all archives, and then their names.
pub(super) fn build(dir: &Path, go: &Go, progress: Progress) -> Result<()> {
    let bin = dir.join("bin");
    let names = references(&bin)?;
    let name = |key: &str| {
        let name = names.get(key).map(String::as_str);
        name.with_context(|| format!("this version of Kubernetes names no image {key}"))
    };
    let pack = |file: &str, config: Value, names: &[&str], tree: Tree| -> Result<()> {
        let image = Image {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            config,
            tree,
            compression: Compression::None,
        };
        image.write(&dir.join("images").join(file))?;
        progress.say(&format!("image {}", names[0]));
        Ok(())
    };

    let entrypoint = |program: &str| json!({"Entrypoint": [program]});
    for (file, program, key) in [
        ("pause.tar", "pause", "PAUSE"),
        ("regression.tar", "regression-issue-74839", "REGRESSION"),
        ("coredns.tar", "coredns", "COREDNS"),
    ] {
        let mut tree = Tree::default();
        tree.file(program, bin.join(program), 0o755);
        // CoreDNS asks the API over TLS.
        certificates(&mut tree)?;
        pack(file, entrypoint(&format!("/{program}")), &[name(key)?], tree)?;
    }
    let shell = json!({"Cmd": ["sh"], "Env": [PATH]});
    pack("busybox.tar", shell, &[name("BUSYBOX")?], base()?)?;

    let mut nginx = base()?;
    nginx.bytes("www/index.html", "Welcome to nginx! (a stand-in)\n", 0o644);
    let httpd = json!({"Cmd": ["httpd", "-f", "-p", "80", "-h", "/www"], "Env": [PATH]});
    pack("nginx.tar", httpd, &[name("NGINX")?, name("NGINX_NEW")?], nginx)?;

    let config = json!({"Entrypoint": ["/agnhost"], "Cmd": ["pause"], "Env": [PATH]});
    let all = ["AGNHOST", "AGNHOST_PREV", "DNSTOOLS", "IPTABLES"];
    let all = all.into_iter().map(name).collect::<Result<Vec<_>>>()?;
    pack("agnhost.tar", config, &all, agnhost(&bin, go)?)?;

    let list: String = names
        .iter()
        .map(|(key, value)| format!("{key}={value}\n"))
        .collect();
    let path = dir.join(NAMES);
    let mut staged =
        tempfile::NamedTempFile::new_in(dir.join("images")).context("write the names of images")?;
    writeln!(staged, "{}", stamp()).and_then(|()| staged.write_all(list.as_bytes()))?;
    staged
        .persist(&path)
        .with_context(|| format!("write {}", path.display()))?;
    Ok(())
}

fn stamp() -> String {
    let hash = Sha256::digest(include_str!("images.rs"));
    let hash: String = hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("{MADE_BY}{hash}")
}

/// What this version's suites call their images, by Kubernetes' own table.
fn references(bin: &Path) -> Result<BTreeMap<String, String>> {
    let program = bin.join("names");
    let output = Command::new(&program)
        .output()
        .with_context(|| format!("start {}", program.display()))?;
    let text = String::from_utf8(output.stdout).context("the names of images are no text")?;
    let mut names: BTreeMap<_, _> = text
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    let coredns = MODULES.iter().find(|module| module.dir == "coredns");
    let version = coredns.context("CoreDNS is not among the modules")?.version()?;
    names.insert(
        "COREDNS".into(),
        format!("localhost/coredns:{}", version.trim_start_matches('v')),
    );
    Ok(names)
}

/// busybox with all its applets, accounts, the usual directories.
fn base() -> Result<Tree> {
    let mut tree = Tree::default();
    let busybox = find("busybox")?;
    for dir in [
        "dev", "home", "lib", "lib64", "proc", "root", "sbin", "sys", "uploads", "usr/bin", "usr/sbin",
        "var/log", "var/run",
    ] {
        tree.directory(dir, 0o755);
    }
    tree.directory("tmp", 0o1777);
    tree.file("bin/busybox", &busybox, 0o755);
    for applet in read(Command::new(&busybox).arg("--list"))?
        .lines()
        .filter(|name| *name != "busybox")
    {
        tree.symlink(format!("bin/{applet}"), "busybox");
    }
    // The suites look for these accounts in agnhost.
    let passwd = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n\
                  user-defined-in-image:x:1000:1000::/home:/bin/sh\n";
    let group = "root:x:0:\nnogroup:x:65534:\nuser-defined-in-image:x:1000:\n\
                 group-defined-in-image:x:50000:user-defined-in-image\n";
    tree.bytes("etc/passwd", passwd, 0o644);
    tree.bytes("etc/group", group, 0o644);
    tree.bytes("etc/nsswitch.conf", "hosts: files dns\n", 0o644);
    Ok(tree)
}

fn agnhost(bin: &Path, go: &Go) -> Result<Tree> {
    let mut tree = base()?;
    for (name, _) in PROGRAMS.iter().filter(|(name, _)| *name != "busybox") {
        // Real ones in place of applets of other habits: busybox's nc knows no -u.
        let name = name.trim_end_matches(".openbsd");
        tree.remove(format!("bin/{name}"));
    }
    for (program, _) in PROGRAMS.iter().filter(|(name, _)| *name != "busybox") {
        add_program(&mut tree, program, program.trim_end_matches(".openbsd"))?;
    }
    if which("wget").is_some() {
        // busybox's ends by a signal when given -T.
        tree.remove("bin/wget");
        add_program(&mut tree, "wget", "wget")?;
        tree.bytes("etc/wgetrc", "tries = 1\n", 0o644);
    }
    // Debian's busybox shell prefers its applets to programs in PATH.
    tree.symlink("bin/sh", "/usr/bin/bash");
    certificates(&mut tree)?;
    tree.file("agnhost", bin.join("agnhost-connect"), 0o755);
    tree.file("agnhost-full", bin.join("agnhost"), 0o755);
    tree.symlink("agnhost-2", "agnhost");
    // The DNS specs run it from this image.
    tree.file("coredns", bin.join("coredns"), 0o755);
    let porter = go.sources(&MODULES[0])?.join("test/images/agnhost/porter");
    for file in ["localhost.crt", "localhost.key"] {
        tree.file(file, porter.join(file), 0o644);
    }
    Ok(tree)
}

/// The machine's authorities, as one file.
fn certificates(tree: &mut Tree) -> Result<()> {
    const FILES: [&str; 2] = [
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pki/tls/certs/ca-bundle.crt",
    ];
    let file = FILES.into_iter().find(|file| Path::new(file).exists());
    let file = file.with_context(|| {
        format!(
            "none of {} is here\n  next: install ca-certificates",
            FILES.join(", ")
        )
    })?;
    tree.file("etc/ssl/certs/ca-certificates.crt", file, 0o644);
    Ok(())
}

/// Puts a program of this machine into `/usr/bin`, and the libraries that it needs to where they are here.
fn add_program(tree: &mut Tree, program: &str, name: &str) -> Result<()> {
    let path = find(program)?;
    let libraries = Command::new("ldd").arg(&path).output().context("start ldd")?;
    tree.file(format!("usr/bin/{name}"), &path, 0o755);
    // `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)`, or the loader alone; nothing for static programs.
    for word in String::from_utf8_lossy(&libraries.stdout).split_ascii_whitespace() {
        if word.starts_with('/') && !tree.contains(word) && Path::new(word).exists() {
            tree.file(word, word, 0o755);
        }
    }
    Ok(())
}

fn read(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("start {}", command.get_program().display()))?;
    if !output.status.success() {
        bail!("{} ended with {}", command.get_program().display(), output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn find(program: &str) -> Result<PathBuf> {
    which(program).with_context(|| format!("there is no {program} in PATH"))
}

/// The file behind the first `name` in `PATH`, links followed.
fn which(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).find_map(|dir| fs::canonicalize(dir.join(name)).ok())
}
