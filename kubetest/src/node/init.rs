//! The first process of a node, in namespaces of its own: private mounts, then containerd, kubelet and kube-proxy, kept
//! running. The node ends with it.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::process::WaitOptions;
use serde::{Deserialize, Serialize};

use super::cgroup;

/// What the first process needs to know, in `node.json` of the node's directory.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// The node's name.
    pub name: String,
    /// Paths of its cgroups.
    pub cgroups: Vec<PathBuf>,
    /// Directory of programs, put before the rest of `PATH`.
    pub bin: PathBuf,
    /// Image archives to import before pods run.
    pub archives: Vec<PathBuf>,
    /// What to start once containerd answers and the images are there: name, program and arguments.
    pub services: Vec<Service>,
}

/// A program that is kept running.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Service {
    /// Its name, and that of its log.
    pub name: String,
    /// Program and arguments.
    pub command: Vec<String>,
}

/// Where the images' import has got to.
#[derive(Debug)]
struct Imports {
    waiting: VecDeque<PathBuf>,
    running: Vec<u32>,
}

/// A service and the process that is it now.
#[derive(Debug)]
struct Kept {
    service: Service,
    pid: Option<u32>,
    again: Instant,
}

const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";

/// Time between the end of a service and its next start.
const BACKOFF: Duration = Duration::from_secs(1);

/// How long containerd may take to answer.
const CONTAINERD: Duration = Duration::from_secs(60);

/// kubelet insists on these values; private copies spare the machine's own settings.
const SYSCTLS: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// Joins the node's cgroups, then becomes the program that makes the namespaces and starts [`run`] in them.
///
/// # Errors
/// The cgroups can't be joined, or `unshare` can't be started.
pub fn launch(dir: &Path) -> Result<std::convert::Infallible> {
    let plan = read(dir)?;
    cgroup::join(&plan.cgroups)?;
    let own = std::env::current_exe().context("find this program")?;
    let error = Command::new("unshare")
        .args([
            "--mount",
            "--uts",
            "--ipc",
            "--pid",
            "--cgroup",
            "--fork",
            "--kill-child",
            "--",
        ])
        .arg(own)
        .arg("node-init")
        .arg(dir)
        .exec();
    Err(error).context("start unshare")
}

/// Runs the node until it is killed.
///
/// # Errors
/// The mounts can't be made, or containerd does not answer.
pub fn run(dir: &Path) -> Result<std::convert::Infallible> {
    let plan = read(dir)?;
    rustix::system::sethostname(plan.name.as_bytes()).context("set the host name")?;
    prepare(dir)?;
    let path = std::env::var("PATH").unwrap_or_default();
    let path = format!("{}:{path}", plan.bin.display());

    let ended = reap();
    let containerd = Service {
        name: "containerd".to_owned(),
        command: ["containerd", "--config", "/var/lib/weft-node/containerd.toml"]
            .map(str::to_owned)
            .to_vec(),
    };
    let mut kept = vec![Kept::new(containerd)];
    kept[0].start(&path)?;
    let began = Instant::now();
    while UnixStream::connect(CONTAINERD_SOCKET).is_err() {
        if began.elapsed() > CONTAINERD {
            bail!("containerd does not answer after {} s", CONTAINERD.as_secs());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut imports = Some(Imports {
        waiting: plan.archives.into(),
        running: Vec::new(),
    });
    loop {
        if let Some(now) = &mut imports
            && now.advance(&path)?
        {
            imports = None;
            mark("images")?;
            kept.extend(plan.services.iter().cloned().map(Kept::new));
        }
        for service in &mut kept {
            if service.pid.is_none() && service.again <= Instant::now() {
                service.start(&path)?;
            }
        }
        match ended.recv_timeout(BACKOFF / 4) {
            Ok(pid) => {
                if let Some(now) = &mut imports {
                    now.running.retain(|running| *running != pid);
                }
                for service in kept.iter_mut().filter(|service| service.pid == Some(pid)) {
                    service.pid = None;
                    service.again = Instant::now() + BACKOFF;
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => bail!("the thread that waits for processes has gone"),
        }
    }
}

// === impl Imports ===

impl Imports {
    /// Starts the next import where none runs: they share containerd's database, and the processors with other nodes.
    /// Returns whether all are done.
    fn advance(&mut self, path: &str) -> Result<bool> {
        if !self.running.is_empty() {
            return Ok(false);
        }
        let Some(archive) = self.waiting.pop_front() else {
            return Ok(true);
        };
        let mut command = Command::new("ctr");
        command
            .args(["--namespace", "k8s.io", "images", "import", "--digests=false"])
            .arg(&archive);
        self.running.push(spawn(command, "images", path)?);
        Ok(false)
    }
}

// === impl Kept ===

impl Kept {
    fn new(service: Service) -> Self {
        Self {
            service,
            pid: None,
            again: Instant::now(),
        }
    }

    fn start(&mut self, path: &str) -> Result<()> {
        let Some((program, args)) = self.service.command.split_first() else {
            bail!("service {} has no program", self.service.name);
        };
        let mut command = Command::new(program);
        command.args(args);
        self.pid = Some(spawn(command, &self.service.name, path)?);
        Ok(())
    }
}

fn read(dir: &Path) -> Result<Plan> {
    let path = dir.join("node.json");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("read {}", path.display()))
}

/// Makes the node's view of the file system: `/var`, `/opt`, `/etc/cni`, `/run`, `/sys` and `/proc` are its own,
/// everything else is the machine's.
fn prepare(dir: &Path) -> Result<()> {
    mount_change("/", MountPropagationFlags::PRIVATE)?;
    let unified = cgroup::is_unified()?;
    let hierarchies: Vec<String> = if unified {
        Vec::new()
    } else {
        fs::read_dir(cgroup::ROOT)?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect()
    };
    // Read before /proc and /run are replaced: the files are in the node's directory, below /var.
    let own = dir.join("own");
    bind(&own.join("resolv.conf"), "/etc/resolv.conf")?;
    if Path::new("/etc/machine-id").exists() {
        bind(&own.join("machine-id"), "/etc/machine-id")?;
    }
    bind(&dir.join("opt"), "/opt")?;
    bind(&dir.join("etc-cni"), "/etc/cni")?;
    mount("proc", "/proc", "proc", "")?;
    let settings = own.join("sysctl");
    fs::create_dir_all(&settings)?;
    for (key, value) in SYSCTLS {
        let file = settings.join(key.replace('/', "."));
        fs::write(&file, format!("{value}\n"))?;
        let target = Path::new("/proc/sys").join(key);
        if target.exists() {
            bind(&file, &target)?;
        }
    }
    // A reboot of a node is told by this, as one of a machine is.
    let boot = settings.join("boot_id");
    fs::write(&boot, format!("{}\n", uuid::Uuid::new_v4()))?;
    bind(&boot, "/proc/sys/kernel/random/boot_id")?;

    mount("sysfs", "/sys", "sysfs", "")?;
    mount("bpf", "/sys/fs/bpf", "bpf", "")?;
    if unified {
        mount("cgroup2", cgroup::ROOT, "cgroup2", "")?;
        leave_root()?;
    } else {
        mount("tmpfs", cgroup::ROOT, "tmpfs", "mode=755")?;
        for hierarchy in hierarchies {
            let target = Path::new(cgroup::ROOT).join(&hierarchy);
            fs::create_dir(&target)?;
            match hierarchy.as_str() {
                "unified" => mount("cgroup2", &target, "cgroup2", "")?,
                "systemd" => mount("cgroup", &target, "cgroup", "none,name=systemd")?,
                _ => mount("cgroup", &target, "cgroup", &hierarchy)?,
            }
        }
    }
    mount("tmpfs", "/run", "tmpfs", "mode=755")?;
    for made in ["/run/lock", "/run/netns"] {
        fs::create_dir_all(made)?;
    }
    bind(&dir.join("var"), "/var")?;
    mount_change("/", MountPropagationFlags::SHARED)
}

/// With the unified hierarchy alone, processes have to be in a leaf before the kubelet's cgroups can have controllers.
fn leave_root() -> Result<()> {
    let leaf = Path::new(cgroup::ROOT).join("init");
    fs::create_dir_all(&leaf)?;
    fs::write(leaf.join("cgroup.procs"), "0").context("leave the root cgroup")?;
    // The process that made the namespaces is moved from outside: it can't be seen from here.
    let began = Instant::now();
    loop {
        match cgroup::hand_down(Path::new(cgroup::ROOT)) {
            Err(error) if began.elapsed() > Duration::from_secs(10) => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
            Ok(()) => return Ok(()),
        }
    }
}

/// Tells whoever waits outside how far the node has come.
fn mark(what: &str) -> Result<()> {
    File::create(Path::new("/var/lib/weft-node").join(what)).with_context(|| format!("mark {what}"))?;
    Ok(())
}

/// Reaps every process that ends, orphans of pods among them, and tells which.
fn reap() -> Receiver<u32> {
    let (send, receive) = channel();
    std::thread::spawn(move || {
        loop {
            match rustix::process::wait(WaitOptions::empty()) {
                Ok(Some((pid, _))) => {
                    if send.send(pid.as_raw_nonzero().get().unsigned_abs()).is_err() {
                        return;
                    }
                }
                // No child yet.
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    });
    receive
}

fn spawn(mut command: Command, log: &str, path: &str) -> Result<u32> {
    let file = Path::new("/var/log").join(format!("{log}.log"));
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&file)
        .with_context(|| format!("open {}", file.display()))?;
    let child = command
        .env("PATH", path)
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .process_group(0)
        .spawn()
        .with_context(|| format!("start {}", command.get_program().display()))?;
    // Reaped by the thread that reaps everything.
    Ok(child.id())
}

fn mount(source: &str, target: impl AsRef<Path>, kind: &str, options: &str) -> Result<()> {
    let target = target.as_ref();
    let options = std::ffi::CString::new(options)?;
    rustix::mount::mount(source, target, kind, MountFlags::empty(), options.as_c_str())
        .with_context(|| format!("mount {kind} on {}", target.display()))
}

fn bind(source: &Path, target: impl AsRef<Path>) -> Result<()> {
    let target = target.as_ref();
    weft_kernel::mount::bind(source, target).with_context(|| format!("show {}", source.display()))
}

fn mount_change(target: &str, how: MountPropagationFlags) -> Result<()> {
    rustix::mount::mount_change(target, how | MountPropagationFlags::REC)
        .with_context(|| format!("change the propagation of mounts below {target}"))
}
