//! The API goes back in time, Nodes are registered anew, a ledger is damaged: addresses of live pods are never given twice.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::bed::{Bed, Sandbox};
use crate::invariants::Invariant;
use crate::support::{is_root, weft_ok};

/// More than the addresses of the blocks of four that a node has from the beginning, so that it asks for others.
const PODS: usize = 14;

/// Sandboxes of one node, with their addresses.
struct Pods<'a> {
    bed: &'a Bed,
    pods: Vec<(Sandbox, Ipv4Addr)>,
}

// === impl Pods ===

impl<'a> Pods<'a> {
    fn on(bed: &'a Bed, label: &str, count: usize) -> Self {
        let pods = (0..count).map(|number| {
            let sandbox = bed.sandbox(&format!("{label}{number}"));
            let address = bed.add(&sandbox);
            (sandbox, address)
        });
        Self {
            bed,
            pods: pods.collect(),
        }
    }

    fn addresses(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.pods.iter().map(|(_, address)| *address)
    }

    /// Waits until the node is in order; then every pod has the address it had.
    fn kept(&self, what: &str) {
        let (_, audit) = self.bed.until(what, |audit| audit.findings().is_empty());
        let held = audit.held();
        let moved = self
            .pods
            .iter()
            .filter(|(sandbox, address)| held.get(&sandbox.id) != Some(address));
        let moved = moved.count();
        Invariant::NoWrongFree.count(self.pods.len(), moved);
        Invariant::NoDuplicate.count(held.len(), audit.duplicates());
        assert_eq!((moved, audit.duplicates()), (0, 0), "{what}: {audit:?}");
    }
}

/// No address is two pods'.
fn all_differ(what: &str, pods: &[&Pods<'_>]) {
    let addresses: Vec<Ipv4Addr> = pods.iter().flat_map(|pods| pods.addresses()).collect();
    let different: BTreeSet<&Ipv4Addr> = addresses.iter().collect();
    let twice = addresses.len() - different.len();
    Invariant::NoDuplicate.count(addresses.len(), twice);
    assert_eq!(twice, 0, "{what}: {addresses:?}");
}

/// The blocks of each node, by the API.
fn blocks(bed: &Bed) -> Vec<(String, BTreeSet<String>)> {
    let status = bed.status();
    let text = |value: &Value| value.as_str().expect("a string").to_owned();
    let nodes = status["nodes"].as_array().expect("a list").iter();
    nodes
        .map(|node| {
            let blocks = node["blocks"].as_array().expect("a list").iter();
            (text(&node["name"]), blocks.map(text).collect())
        })
        .collect()
}

/// Waits until the nodes have so many blocks, no two of them the same.
fn until_granted(bed: &Bed, what: &str, wanted: impl Fn(&[(String, BTreeSet<String>)]) -> bool) {
    let began = Instant::now();
    loop {
        let granted = blocks(bed);
        let all: Vec<&String> = granted.iter().flat_map(|(_, blocks)| blocks).collect();
        let different: BTreeSet<&&String> = all.iter().collect();
        assert_eq!(all.len(), different.len(), "{what}: {granted:?}");
        if wanted(&granted) {
            Invariant::Convergence.took(true, began.elapsed());
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(120), "{what}: {granted:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn an_api_that_goes_back_in_time_gives_no_live_pods_block_to_another_node() {
    if !is_root("an_api_that_goes_back_in_time_gives_no_live_pods_block_to_another_node") {
        return;
    }
    // Four addresses a block, so that blocks come and go with pods.
    let [near, far] = Bed::pair_with("rewind", &["--block-size", "30"]);
    let first = Pods::on(&near, "a", 1);
    std::thread::sleep(Duration::from_secs(4));
    // What is granted from here on, the restored API does not know.
    let began = Instant::now();
    let later = Pods::on(&near, "b", PODS);
    let of_near = |granted: &[(String, BTreeSet<String>)]| granted[0].1.clone();
    let in_use = |blocks: &BTreeSet<String>| -> BTreeSet<String> {
        let used = |block: &&String| {
            let net: ipnet::Ipv4Net = block.parse().expect("a block");
            let mut addresses = first.addresses().chain(later.addresses());
            addresses.any(|address| net.contains(&address))
        };
        blocks.iter().filter(used).cloned().collect()
    };
    let had = in_use(&of_near(&blocks(&near)));
    // The operator that knows them dies as well.
    let seconds = (began.elapsed().as_secs() + 2).to_string();
    weft_ok(&["lab", "fault", near.lab(), "kill-operator", "--for", "1s"]);
    weft_ok(&["lab", "fault", near.lab(), "api-rewind", "--value", &seconds]);
    let left = of_near(&blocks(&near));
    assert!(
        !left.is_superset(&had),
        "the API has forgotten blocks with pods: {had:?}, {left:?}"
    );
    // The other node asks for blocks as soon as there is an operator again.
    let others = Pods::on(&far, "c", 2);
    until_granted(
        &near,
        "the blocks of live pods are their node's again",
        |granted| of_near(granted).is_superset(&had),
    );
    let more = Pods::on(&far, "d", PODS);
    all_differ("after a restored API", &[&first, &later, &others, &more]);
    for pods in [&first, &later, &others, &more] {
        pods.kept("after a restored API");
    }
}

#[test]
fn a_node_that_is_registered_anew_keeps_the_blocks_of_its_live_pods() {
    if !is_root("a_node_that_is_registered_anew_keeps_the_blocks_of_its_live_pods") {
        return;
    }
    let [near, far] = Bed::pair_with("anew", &["--block-size", "30"]);
    let pods = Pods::on(&near, "a", 2);
    // Somebody deletes the Node; its kubelet registers it again, with another UID.
    let path = format!("/api/v1/nodes/{}", near.node_name);
    let uid = || {
        near.api("GET", &path)["metadata"]["uid"]
            .as_str()
            .map(str::to_owned)
    };
    let before = uid();
    near.api("DELETE", &path);
    let began = Instant::now();
    while uid().is_none() || uid() == before {
        assert!(
            began.elapsed() < Duration::from_secs(120),
            "the Node does not come back"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    let used = |blocks: &BTreeSet<String>| {
        let nets = blocks
            .iter()
            .map(|block| block.parse::<ipnet::Ipv4Net>().expect("a block"));
        let nets: Vec<_> = nets.collect();
        pods.addresses()
            .all(|address| nets.iter().any(|net| net.contains(&address)))
    };
    until_granted(
        &near,
        "the blocks of live pods are their node's again",
        |granted| used(&granted[0].1),
    );
    let others = Pods::on(&far, "b", PODS);
    all_differ("after a Node was registered anew", &[&pods, &others]);
    pods.kept("after a Node was registered anew");
}

#[test]
fn pods_start_and_end_while_the_api_is_down() {
    if !is_root("pods_start_and_end_while_the_api_is_down") {
        return;
    }
    let bed = Bed::new("nodown");
    let kept = Pods::on(&bed, "a", 2);
    weft_ok(&["lab", "fault", bed.lab(), "api-down"]);
    let ended = Pods::on(&bed, "b", 3);
    // An agent that starts meanwhile goes on from what it knew.
    weft_ok(&["lab", "fault", bed.lab(), "kill-agent"]);
    let started = Pods::on(&bed, "c", 3);
    for (sandbox, _) in &ended.pods {
        bed.delete(sandbox);
    }
    all_differ("while the API is down", &[&kept, &ended, &started]);
    kept.kept("while the API is down");
    started.kept("while the API is down");
    assert_eq!(bed.audit().held().len(), 5);
    weft_ok(&["lab", "fault", bed.lab(), "api-down", "--clear"]);
    started.kept("when the API is back");
}

#[test]
fn a_reboot_gives_back_what_was_attached_before_it() {
    if !is_root("a_reboot_gives_back_what_was_attached_before_it") {
        return;
    }
    let bed = Bed::new("boot");
    let before = Pods::on(&bed, "a", 2);
    weft_ok(&["lab", "fault", bed.lab(), "reboot-node", bed.node_name]);
    // Nobody sends DEL for them: their runtime's namespaces are gone, by the ledger too, since the boot is another.
    let (_, audit) = bed.until("what was before the reboot is given back", |audit| {
        audit.held().is_empty()
    });
    Invariant::NoLeak.count(before.pods.len(), audit.held().len());
    let after = Pods::on(&bed, "b", 2);
    all_differ("an address rests also across a reboot", &[&before, &after]);
    after.kept("after a reboot");
}

#[test]
fn a_damaged_ledger_is_made_anew_from_the_pods_that_are_attached() {
    if !is_root("a_damaged_ledger_is_made_anew_from_the_pods_that_are_attached") {
        return;
    }
    let bed = Bed::new("damage");
    let pods = Pods::on(&bed, "a", 3);
    weft_ok(&["lab", "fault", bed.lab(), "kill-agent", "--for", "10m"]);
    let ledger = bed.node_dir().join("state/ledger.redb");
    let mut bytes = std::fs::read(&ledger).expect("the ledger");
    for byte in bytes.iter_mut().skip(64) {
        *byte ^= 0x5a;
    }
    std::fs::write(&ledger, &bytes).expect("the ledger is writable");
    weft_ok(&["lab", "fault", bed.lab(), "kill-agent", "--clear"]);
    pods.kept("after its ledger was damaged");
    assert_eq!(
        std::fs::read(ledger.with_extension("damaged-1")).expect("it is kept"),
        bytes
    );
    let began = Instant::now();
    let told = loop {
        let output = crate::support::weft(&["status", "--lab", bed.lab()]);
        let told = crate::support::text(&output);
        if told.contains("the ledger was damaged") {
            break told;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "{told}");
        std::thread::sleep(Duration::from_millis(100));
    };
    assert!(told.contains("made anew from 3 attached pods"), "{told}");
    // Addresses that may have been somebody's a moment ago rest: new pods get others, of another block.
    let more = Pods::on(&bed, "b", 2);
    all_differ("after a ledger was damaged", &[&pods, &more]);
    let net: ipnet::Ipv4Net = "10.244.0.0/24".parse().expect("a block");
    assert!(more.addresses().all(|address| !net.contains(&address)));
    for (sandbox, _) in pods.pods.iter().chain(&more.pods) {
        bed.delete(sandbox);
    }
    let audit = bed.audit();
    Invariant::NoLeak.count(1, audit.held().len());
    assert_eq!((audit.held().len(), audit.findings().len()), (0, 0), "{audit:?}");
}
