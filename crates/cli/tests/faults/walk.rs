//! One cluster through every fault of the lab: what has to work works during and after it, no address is lost or given
//! twice, and all differences are gone by themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use serde_json::Value;
use weft_kernel::NetNs;

use crate::invariants::Invariant;
use crate::support::{Name, is_root, text, weft, weft_ok};
use crate::traffic::{End, Traffic};

/// Connections between two pods that no fault may end, unless it takes a pod.
const CONNECTIONS: usize = 16;

/// Pods that a Deployment keeps.
const PODS: usize = 6;

/// Ends a wait for something that never comes.
const HANG: Duration = Duration::from_secs(150);

/// A cluster of two nodes with pods on both.
struct Cluster {
    name: Name,
}

/// A pod and where it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Pod {
    node: String,
    attachment: String,
    pod: String,
    address: Ipv4Addr,
}

/// A fault, and what must hold of it.
struct Step {
    /// As on the command line, behind the cluster's name.
    fault: &'static str,
    /// Seconds that it lasts.
    lasts: u64,
    /// Seconds without a change before it.
    calm: u64,
    /// The node whose pods it ends.
    takes: Option<&'static str>,
    /// Whether all checks have to pass while it lasts too, pods coming and going.
    checked: bool,
}

// === impl Cluster ===

impl Cluster {
    fn new(label: &str) -> Self {
        let name = Name::new(label);
        weft_ok(&["lab", "create", name.as_str(), "--node-count", "2"]);
        let manifest = std::env::temp_dir().join(format!("{}.yaml", name.as_str()));
        std::fs::write(&manifest, deployment()).expect("a manifest");
        weft_ok(&[
            "lab",
            "apply",
            name.as_str(),
            "-f",
            manifest.to_str().expect("UTF-8"),
        ]);
        std::fs::remove_file(&manifest).expect("the manifest goes");
        Self { name }
    }

    fn fault(&self, arguments: &[&str]) -> String {
        let arguments: Vec<&str> = ["lab", "fault", self.name.as_str()]
            .iter()
            .chain(arguments)
            .copied()
            .collect();
        weft_ok(&arguments)
    }

    /// The audit of the whole cluster, if everything answers.
    fn audit(&self) -> Result<Value, String> {
        let output = weft(&["audit", "--lab", self.name.as_str(), "-o", "json"]);
        let audit: Value = serde_json::from_slice(&output.stdout).map_err(|_| text(&output))?;
        if output.status.success() {
            Ok(audit)
        } else {
            Err(audit.to_string())
        }
    }

    /// Waits until nothing differs anywhere, all nodes are Ready and all pods run; returns who has which address, and
    /// how long that took.
    fn converged(&self, what: &str) -> (Vec<Pod>, Duration) {
        let began = Instant::now();
        loop {
            let why = match (self.audit(), self.settled()) {
                (Ok(audit), Ok(())) => {
                    let held = pods(&audit);
                    if held.len() == PODS {
                        return (held, began.elapsed());
                    }
                    format!("{} attachments for {PODS} pods: {held:?}", held.len())
                }
                (Err(why), _) | (_, Err(why)) => why,
            };
            assert!(began.elapsed() < HANG, "{what}: {why}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn settled(&self) -> Result<(), String> {
        let output = weft(&["lab", "status", self.name.as_str(), "-o", "json"]);
        let status: Value = serde_json::from_slice(&output.stdout).map_err(|_| text(&output))?;
        // What nodes are told of each other is what they are.
        let network = weft(&["status", "--lab", self.name.as_str()]);
        if !network.status.success() {
            return Err(text(&network));
        }
        let all = status["pods"]["running"] == PODS && status["pods"]["pending"] == 0;
        if output.status.success() && all {
            Ok(())
        } else {
            Err(text(&output))
        }
    }

    fn check(&self, when: &str) {
        let output = weft(&["lab", "check", self.name.as_str(), "-o", "json"]);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let failed: Vec<&Value> = report["checks"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|check| check["verdict"] == "failed")
            .collect();
        let passed = output.status.success() && failed.is_empty();
        Invariant::Checks.count(1, usize::from(!passed));
        assert!(passed, "{when}: {failed:#?} {}", text(&output));
    }

    /// Breaks something under traffic, waits for it to be over, and compares with before; returns who has which address
    /// then.
    fn go(&self, step: &Step, before: &[Pod]) -> Vec<Pod> {
        let fault = step.fault;
        // What is sent to a pod that is gone is dropped, which the checks would rightly wonder at.
        let traffic = step.takes.is_none().then(|| self.traffic(before));
        if let Some(traffic) = &traffic {
            traffic.until_it_flows();
            std::thread::sleep(Duration::from_secs(step.calm));
            traffic.take();
        }
        let lasts = Duration::from_secs(step.lasts);
        let span = format!("{}s", step.lasts);
        let mut arguments: Vec<&str> = fault.split(' ').collect();
        if step.lasts > 0 {
            arguments.extend(["--for", &span]);
        }
        let began = Instant::now();
        let said = self.fault(&arguments);
        if step.checked {
            self.check(&format!("during {fault}"));
        }
        std::thread::sleep(lasts.saturating_sub(began.elapsed()));
        let over = Instant::now();
        let (after, _) = self.converged(fault);
        let converged = over.elapsed();
        Invariant::Convergence.took(true, converged);

        let stays = |pod: &&Pod| step.takes != Some(pod.node.as_str());
        let staying: Vec<Pod> = before.iter().filter(stays).cloned().collect();
        let (moved, duplicates) = (moved(&staying, &after), duplicates(&after));
        Invariant::NoWrongFree.count(staying.len(), moved.len());
        Invariant::NoDuplicate.count(after.len(), duplicates);
        Invariant::NoLeak.count(after.len(), after.len() - PODS);
        assert!(moved.is_empty(), "{fault}: {moved:?}, now {after:?}");
        assert_eq!(duplicates, 0, "{fault}: {after:?}");
        if let Some(traffic) = traffic {
            traffic.until_it_flows();
            let seen = traffic.end();
            eprintln!("{} | {converged:?} | {seen:?}", said.trim());
            Invariant::Connections.count(CONNECTIONS, seen.resets);
            assert_eq!(seen.resets, 0, "{fault}: {seen:?}");
        } else {
            eprintln!("{} | {converged:?}", said.trim());
        }
        self.check(&format!("after {fault}"));
        after
    }

    /// Where traffic of a pod goes out or comes in.
    fn end(&self, pod: &Pod) -> End {
        let netns = format!("weft-{}.pod.{}", self.name.as_str(), &pod.attachment[..12]);
        End {
            netns: NetNs::named(&netns).expect("the pod's namespace"),
            address: pod.address,
        }
    }

    /// Traffic between a pod of each node.
    fn traffic(&self, held: &[Pod]) -> Traffic {
        let ends = ["node-1", "node-2"].map(|node| {
            let on = held.iter().find(|pod| pod.node == node);
            on.unwrap_or_else(|| panic!("no pod on {node}: {held:?}")).clone()
        });
        let [from, to] = ends.each_ref().map(|pod| self.end(pod));
        Traffic::start(&from, &to, CONNECTIONS, None)
    }
}

fn deployment() -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web}}\nspec:\n  replicas: {PODS}\n  \
         selector: {{matchLabels: {{app: web}}}}\n  template:\n    metadata: {{labels: {{app: web}}}}\n    \
         spec: {{containers: [{{name: c, image: none, ports: [{{containerPort: 80}}]}}]}}\n"
    )
}

/// Who has which address, by the ledgers.
fn pods(audit: &Value) -> Vec<Pod> {
    let nodes = audit["nodes"].as_array().into_iter().flatten();
    let mut held: Vec<Pod> = nodes
        .flat_map(|node| {
            let name = node["node"].as_str().expect("a name").to_owned();
            node["held"]
                .as_array()
                .into_iter()
                .flatten()
                .map(move |held| Pod {
                    node: name.clone(),
                    attachment: held["attachment"].as_str().expect("a key").to_owned(),
                    pod: held["pod"].as_str().unwrap_or_default().to_owned(),
                    address: held["address"]
                        .as_str()
                        .and_then(|text| text.parse().ok())
                        .expect("IPv4"),
                })
        })
        .collect();
    held.sort();
    held
}

fn duplicates(held: &[Pod]) -> usize {
    let addresses: BTreeSet<Ipv4Addr> = held.iter().map(|pod| pod.address).collect();
    held.len() - addresses.len()
}

/// Attachments that were there before and have another address now, or none.
fn moved<'a>(before: &'a [Pod], after: &[Pod]) -> Vec<&'a Pod> {
    let now: BTreeMap<&str, Ipv4Addr> = after
        .iter()
        .map(|pod| (pod.attachment.as_str(), pod.address))
        .collect();
    before
        .iter()
        .filter(|pod| now.get(pod.attachment.as_str()) != Some(&pod.address))
        .collect()
}

const fn over_at_once(fault: &'static str) -> Step {
    Step {
        fault,
        lasts: 0,
        calm: 0,
        takes: None,
        checked: false,
    }
}

const fn lasting(fault: &'static str, lasts: u64) -> Step {
    Step {
        lasts,
        ..over_at_once(fault)
    }
}

const STEPS: [Step; 18] = [
    over_at_once("flush-nft"),
    over_at_once("delete-route"),
    over_at_once("delete-link"),
    over_at_once("delete-map-entry"),
    over_at_once("sysctl"),
    Step {
        checked: true,
        ..over_at_once("kill-agent")
    },
    lasting("freeze-agent node-1", 4),
    Step {
        checked: true,
        ..lasting("kill-operator", 20)
    },
    over_at_once("lose-slice"),
    lasting("disk-full node-2", 5),
    lasting("mtu node-2 --value 1450", 4),
    lasting("loss node-1 --value 5", 4),
    lasting("partition node-2", 4),
    lasting("api-down", 6),
    // Further back there are the pods of the checks, which come back then.
    Step {
        calm: 8,
        ..over_at_once("api-rewind --value 5")
    },
    over_at_once("change-address node-2"),
    Step {
        takes: Some("node-2"),
        ..over_at_once("reboot-node node-2")
    },
    Step {
        takes: Some("node-2"),
        ..over_at_once("replace-node node-2")
    },
];

#[test]
fn every_fault_of_the_lab_passes_without_a_trace() {
    if !is_root("every_fault_of_the_lab_passes_without_a_trace") {
        return;
    }
    let cluster = Cluster::new("walk");
    let (mut held, _) = cluster.converged("at first");
    cluster.check("before the first fault");
    for step in &STEPS {
        held = cluster.go(step, &held);
    }
}
