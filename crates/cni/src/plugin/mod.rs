//! The plugin itself: one call of a runtime, from its environment to its answer.

mod agent;
mod log;
mod loopback;
mod netns;
mod panic;
mod stdin;

use std::ffi::OsString;
use std::io::Read;
use std::time::Instant;

use ipnet::IpNet;
use serde_json::{Value, json};
use weft_model::{AttachmentKey, UserError, codes};

pub use log::Entry;
pub use loopback::run as run_loopback;
pub use panic::{answer_once, install_panic_hook};
pub use stdin::Stdin;

use crate::env::{Invocation, Sandbox};
use crate::protocol::{Add, Attached, Check, Command, Del, Gc, Pod, Reply, Times};
use crate::spec::{AddResult, Failure, Interface, Ip, NetConf, Route, Version, code};

/// What the process has to say when it ends.
#[derive(Debug)]
pub struct Outcome {
    /// The JSON for standard output: a result, or an error if the call failed.
    pub answer: Option<Value>,
    /// Whether the call succeeded.
    pub success: bool,
    /// For people: lines for standard error.
    pub notes: Vec<String>,
    /// One line for the log file that the configuration names.
    pub log: Option<Entry>,
}

/// Part of what the plugin says of itself, by which its file is known whatever its name is.
pub(crate) const ABOUT: &str = "the CNI plugin of Weft, called by container runtimes";

/// The largest configuration read, in bytes. It holds a GC's list of attachments.
const MAX_CONFIG: u64 = 4 << 20;

/// A call that got as far as its configuration.
struct Call {
    /// See [`Times`].
    started_ns: u64,
    conf: NetConf,
    notes: Vec<String>,
}

/// Serves one call: `lookup` finds environment variables, `stdin` has the configuration.
pub fn run(lookup: impl Fn(&str) -> Option<OsString>, stdin: impl Read) -> Outcome {
    let (start, started_ns) = (Instant::now(), Times::now_ns());
    let invocation = match Invocation::from_env(lookup) {
        Ok(Invocation::About) => return Outcome::about(),
        Ok(Invocation::Version) => return Outcome::success(Some(versions())),
        Ok(invocation) => invocation,
        Err(failure) => return Outcome::failure(&failure, Version::LATEST),
    };
    let conf = match read_config(stdin) {
        Ok(conf) => conf,
        Err(failure) => return Outcome::failure(&failure, Version::LATEST),
    };
    let version = conf.version;
    let mut entry = conf
        .log_file
        .clone()
        .map(|file| Entry::new(file, &conf.name, &invocation));
    let mut call = Call {
        started_ns,
        conf,
        notes: Vec::new(),
    };
    let answer = call.serve(invocation);
    if let Some(entry) = &mut entry {
        entry.finish(start.elapsed(), answer.as_ref().err(), &call.notes);
    }
    let outcome = match answer {
        Ok(answer) => Outcome::success(answer),
        Err(failure) => Outcome::failure(&failure, version),
    };
    Outcome {
        notes: call.notes,
        log: entry,
        ..outcome
    }
}

fn read_config(stdin: impl Read) -> Result<NetConf, Failure> {
    let mut config = Vec::new();
    stdin
        .take(MAX_CONFIG + 1)
        .read_to_end(&mut config)
        .map_err(|error| {
            let message = format!(
                "read the network configuration from standard input: {error} (after {} bytes)",
                config.len()
            );
            Failure::new(
                code::IO,
                &UserError::new(codes::CNI_CONFIG, message, "weft explain WEFT-1402"),
            )
        })?;
    if config.len() as u64 > MAX_CONFIG {
        let message = format!("the network configuration is longer than the {MAX_CONFIG} bytes allowed");
        return Err(invalid_config(message));
    }
    NetConf::from_json(&config)
}

/// The answer to VERSION.
fn versions() -> Value {
    json!({
        "cniVersion": Version::LATEST.as_str(),
        "supportedVersions": Version::ALL.map(Version::as_str),
    })
}

// === impl Call ===

impl Call {
    fn serve(&mut self, invocation: Invocation) -> Result<Option<Value>, Failure> {
        match invocation {
            Invocation::About | Invocation::Version => Ok(None),
            Invocation::Add(sandbox) => self.add(sandbox).map(Some),
            Invocation::Check(sandbox) => self.check(sandbox).map(|()| None),
            Invocation::Del { key, pod } => {
                self.delete(key, pod);
                Ok(None)
            }
            Invocation::Gc => self.gc().map(|()| None),
            Invocation::Status => self.status().map(|()| None),
        }
    }

    fn add(&mut self, sandbox: Sandbox) -> Result<Value, Failure> {
        let previous = self.conf.prev_result()?;
        let (file, netns) = netns::open(&sandbox.netns, sandbox.netns_override)?;
        let request = Command::Add(Add {
            key: sandbox.key.clone(),
            netns,
            pod: sandbox.pod.clone(),
            runtime_config: self.conf.runtime_config.clone(),
            prev_result: previous.clone(),
        });
        let failure = match self.ask(request, Some(&file), agent::ADD) {
            Ok(Reply::Added(attached)) => {
                let made = self.result(&sandbox, &attached);
                let result = previous.map_or(made.clone(), |previous| made.after(previous));
                match result.to_json(self.conf.version) {
                    Ok(json) => return Ok(json),
                    Err(error) => agent::disagreement(&error.to_string()),
                }
            }
            // The agent has undone what it did.
            Ok(Reply::Failed(failure)) => return Err(failure),
            Ok(Reply::Done | Reply::Audited(_)) => {
                agent::disagreement("the agent answered ADD without a result")
            }
            Err(error) if error.is_unreachable() => return Err(self.unreachable(&error, code::TRY_AGAIN)),
            Err(error) => self.unreachable(&error, code::TRY_AGAIN),
        };
        // The agent may have acted, or may yet, on an ADD that has failed for the
        // runtime, and not every runtime sends a DEL then.
        self.delete(sandbox.key, sandbox.pod);
        Err(failure)
    }

    fn check(&mut self, sandbox: Sandbox) -> Result<(), Failure> {
        self.need_version("CHECK", Version::V0_4_0)?;
        let Some(prev_result) = self.conf.prev_result()? else {
            let message = format!(
                "CHECK of network \"{}\" came without a prevResult",
                self.conf.name
            );
            return Err(invalid_config(message));
        };
        let (file, netns) = netns::open(&sandbox.netns, sandbox.netns_override)?;
        let request = Command::Check(Check {
            key: sandbox.key,
            netns,
            pod: sandbox.pod,
            prev_result,
        });
        self.ask(request, Some(&file), agent::CHECK)
            .map_err(|error| self.unreachable(&error, code::TRY_AGAIN))
            .and_then(done)
    }

    fn gc(&mut self) -> Result<(), Failure> {
        self.need_version("GC", Version::V1_1_0)?;
        let request = Command::Gc(Gc {
            valid: self.conf.valid_attachments.clone(),
        });
        self.ask(request, None, agent::GC)
            .map_err(|error| self.unreachable(&error, code::TRY_AGAIN))
            .and_then(done)
    }

    fn status(&mut self) -> Result<(), Failure> {
        self.need_version("STATUS", Version::V1_1_0)?;
        self.ask(Command::Status, None, agent::STATUS)
            // Whatever keeps it from answering, it can't serve an ADD.
            .map_err(|error| Failure {
                code: code::NOT_AVAILABLE,
                ..self.unreachable(&error, code::NOT_AVAILABLE)
            })
            .and_then(done)
    }

    /// Never fails and never takes longer than two seconds, whatever the state of
    /// agent and disk: a pod whose DEL fails hangs in Terminating. What can't be
    /// handed over at all waits for the runtime's GC.
    fn delete(&mut self, key: AttachmentKey, pod: Pod) {
        let why = match self.ask(
            Command::Del(Del {
                key: key.clone(),
                pod: pod.clone(),
            }),
            None,
            agent::DEL,
        ) {
            Ok(Reply::Done) => return,
            Ok(Reply::Failed(failure)) => failure.to_string(),
            Ok(Reply::Added(_) | Reply::Audited(_)) => {
                "the agent answered DEL with the result of another command".to_owned()
            }
            Err(error) => error.to_string(),
        };
        self.leave_intent(key, pod, &why);
    }

    /// What the agent made, as a result of CNI 1.1.
    fn result(&self, sandbox: &Sandbox, attached: &Attached) -> AddResult {
        let host = Interface {
            name: attached.host_if_name.clone(),
            mac: attached.host_mac.to_string(),
            mtu: Some(attached.mtu),
            ..Interface::default()
        };
        let pod = Interface {
            name: sandbox.key.if_name().to_owned(),
            mac: attached.pod_mac.to_string(),
            mtu: Some(attached.mtu),
            sandbox: sandbox.netns.to_string_lossy().into_owned(),
            ..Interface::default()
        };
        let ip = |entry: &crate::protocol::PodAddress| Ip {
            address: IpNet::from(entry.address),
            gateway: Some(entry.gateway),
            interface: Some(1),
        };
        let default_route = |entry: &crate::protocol::PodAddress| Route {
            mtu: Some(attached.mtu),
            ..Route::new(everywhere(entry.address.is_ipv4()), Some(entry.gateway))
        };
        AddResult {
            interfaces: vec![host, pod],
            ips: attached.addresses.iter().map(ip).collect(),
            routes: attached.addresses.iter().map(default_route).collect(),
            dns: self.conf.dns.clone(),
        }
    }

    fn need_version(&self, command: &str, least: Version) -> Result<(), Failure> {
        if self.conf.version >= least {
            return Ok(());
        }
        let message = format!(
            "{command} exists since CNI {least}, network \"{}\" is configured for {}",
            self.conf.name, self.conf.version
        );
        let next = "set cniVersion in the network configuration to 1.1.0";
        Err(Failure::new(
            code::INCOMPATIBLE_VERSION,
            &UserError::new(codes::CNI_VERSION, message, next),
        ))
    }
}

/// 0.0.0.0/0 or ::/0.
fn everywhere(ipv4: bool) -> IpNet {
    if ipv4 {
        IpNet::V4(ipnet::Ipv4Net::default())
    } else {
        IpNet::V6(ipnet::Ipv6Net::default())
    }
}

fn done(reply: Reply) -> Result<(), Failure> {
    match reply {
        Reply::Done => Ok(()),
        Reply::Failed(failure) => Err(failure),
        Reply::Added(_) | Reply::Audited(_) => Err(agent::disagreement(
            "the agent answered with the result of another command",
        )),
    }
}

fn invalid_config(message: impl Into<String>) -> Failure {
    Failure::new(
        code::CONFIG,
        &UserError::new(codes::CNI_CONFIG, message, "weft explain WEFT-1402"),
    )
}

// === impl Outcome ===

impl Outcome {
    fn success(answer: Option<Value>) -> Self {
        Self {
            answer,
            success: true,
            notes: Vec::new(),
            log: None,
        }
    }

    fn failure(failure: &Failure, version: Version) -> Self {
        Self {
            answer: Some(failure.to_json(version)),
            success: false,
            notes: Vec::new(),
            log: None,
        }
    }

    fn about() -> Self {
        let about = format!("weft-cni {}: {ABOUT}", env!("CARGO_PKG_VERSION"));
        let versions = format!("CNI protocol versions supported: {}", Version::list());
        Self {
            notes: vec![about, versions],
            ..Self::success(None)
        }
    }
}
