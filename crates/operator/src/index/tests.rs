use std::str::FromStr;

use proptest::prelude::*;
use weft_api::PodPoolSpec;
use weft_model::UserError;

use super::*;

const GRACE: Duration = Duration::from_secs(30);

/// An API server that does what the index says and tells it what became of it.
struct Cluster {
    index: Index,
    now: Duration,
    objects: u32,
    writes: Vec<String>,
    networks: BTreeMap<NodeName, Network>,
    pools: BTreeMap<String, Pool>,
    slices: BTreeMap<String, Vec<NodeSliceEntry>>,
    nodes: BTreeMap<NodeName, Node>,
}

// === impl Cluster ===

impl Cluster {
    fn new() -> Self {
        Self {
            index: Index::new(GRACE, vec!["10.0.0.0/16".parse().unwrap()]),
            now: Duration::ZERO,
            objects: 0,
            writes: Vec::new(),
            networks: BTreeMap::new(),
            pools: BTreeMap::new(),
            slices: BTreeMap::new(),
            nodes: BTreeMap::new(),
        }
        .listed()
    }

    fn with_pool(cidr: &str, size: u8) -> Self {
        let mut cluster = Self::new();
        cluster.pool(
            "default",
            serde_json::json!({ "cidrs": [cidr], "blockSize": size }),
        );
        cluster
    }

    fn listed(mut self) -> Self {
        for source in [Source::Nodes, Source::Networks, Source::Pools, Source::Slices] {
            self.index.listed(source);
        }
        self
    }

    /// The same cluster under an operator that has just started.
    fn restarted(mut self) -> Self {
        self.index = Index::new(GRACE, vec!["10.0.0.0/16".parse().unwrap()]);
        for (name, node) in &self.nodes {
            self.index.set_node(name, Some(node.clone()));
        }
        for (name, slice) in &self.slices {
            self.index.set_slice(name, Some(slice.clone()));
        }
        for (name, network) in &self.networks {
            self.index.set_network(name, Some(network.clone()));
        }
        assert_eq!(self.index.plan(self.now, wall(0)), Plan::default());
        for (name, pool) in &self.pools {
            self.index.set_pool(name, Some(pool.clone()));
        }
        self.writes.clear();
        self.listed()
    }

    fn pool(&mut self, name: &str, spec: serde_json::Value) {
        let spec: PodPoolSpec = serde_json::from_value(spec).unwrap();
        let known = self.pools.get(name);
        let pool = Pool {
            uid: format!("uid-of-{name}"),
            created: known.map_or_else(|| wall(self.pools.len() as u64), |known| known.created),
            ranges: spec
                .ranges()
                .map_err(|error| UserError::from(error).message().to_owned()),
            selector: spec
                .node_selector
                .clone()
                .map(|selector| selector.try_into().unwrap()),
            status: known.and_then(|known| known.status.clone()),
        };
        self.pools.insert(name.to_owned(), pool.clone());
        self.index.set_pool(name, Some(pool));
    }

    fn node(&mut self, name: &str, uid: &str, address: &str) {
        self.labelled_node(name, uid, address, &[]);
    }

    fn labelled_node(&mut self, name: &str, uid: &str, address: &str, labels: &[(&str, &str)]) {
        let node = Node {
            uid: uid.parse().unwrap(),
            labels: labels
                .iter()
                .map(|(k, v)| (k.to_string(), v.to_string()))
                .collect(),
            addresses: vec![address.parse().unwrap()],
        };
        let name = NodeName::from_str(name).unwrap();
        self.nodes.insert(name.clone(), node.clone());
        self.index.set_node(&name, Some(node));
    }

    fn remove_node(&mut self, name: &str) {
        let name = NodeName::from_str(name).unwrap();
        self.nodes.remove(&name);
        self.index.set_node(&name, None);
    }

    fn wants(&mut self, name: &str, blocks: u32) {
        let name = NodeName::from_str(name).unwrap();
        let network = self.networks.get_mut(&name).unwrap();
        network.wanted = blocks;
        self.index.set_network(&name, Some(network.clone()));
    }

    /// Somebody else than the operator writes a NodeNetwork.
    fn foreign_network(&mut self, name: &str, uid: &str, blocks: &[&str]) {
        let name = NodeName::from_str(name).unwrap();
        let network = Network {
            object_uid: "foreign".to_owned(),
            node_uid: uid.parse().unwrap(),
            blocks: blocks.iter().map(|block| held(block)).collect(),
            wanted: 1,
            allocation: None,
            deleting: false,
        };
        self.networks.insert(name.clone(), network.clone());
        self.index.set_network(&name, Some(network));
    }

    fn remove_network(&mut self, name: &str) {
        let name = NodeName::from_str(name).unwrap();
        self.networks.remove(&name);
        self.index.set_network(&name, None);
    }

    /// Writes until there is nothing to write; returns what was written.
    fn settle(&mut self) -> Vec<String> {
        for _ in 0..8 {
            let plan = self.index.plan(self.now, wall(1_000 + self.now.as_secs()));
            if plan.actions.is_empty() {
                return std::mem::take(&mut self.writes);
            }
            for action in plan.actions {
                self.write(action);
            }
        }
        panic!("the plan never ends: {:?}", self.writes);
    }

    fn later(&mut self, time: Duration) -> Vec<String> {
        self.now += time;
        self.settle()
    }

    fn write(&mut self, action: Action) {
        self.writes.push(match action {
            Action::CreateNetwork { name, uid, blocks } => {
                self.objects += 1;
                let written = format!("create {name} {}", join(&blocks));
                let network = Network {
                    object_uid: format!("object-{}", self.objects),
                    node_uid: uid,
                    blocks,
                    wanted: 1,
                    allocation: None,
                    deleting: false,
                };
                assert_eq!(self.networks.insert(name.clone(), network.clone()), None);
                self.index.set_network(&name, Some(network));
                written
            }
            Action::SetBlocks { name, uid, blocks } => {
                let written = format!("set {name} {}", join(&blocks));
                let network = self.networks.get_mut(&name).unwrap();
                assert_eq!(network.node_uid, uid);
                network.blocks = blocks;
                self.index.set_network(&name, Some(network.clone()));
                written
            }
            Action::DeleteNetwork { name, object_uid } => {
                let network = self.networks.remove(&name).unwrap();
                assert_eq!(network.object_uid, object_uid);
                self.index.deletion_accepted(&name);
                self.index.set_network(&name, None);
                format!("delete {name}")
            }
            Action::SetAllocation { name, condition, .. } => {
                let written = format!(
                    "{name} {} {}: {}",
                    condition.status, condition.reason, condition.message
                );
                let network = self.networks.get_mut(&name).unwrap();
                network.allocation = Some(condition);
                self.index.set_network(&name, Some(network.clone()));
                written
            }
            Action::SetPoolStatus {
                pool: name, status, ..
            } => {
                let written = format!("pool {name} {}/{}", status.allocated, status.capacity);
                let pool = self.pools.get_mut(&name).unwrap();
                pool.status = Some(status);
                self.index.set_pool(&name, Some(pool.clone()));
                written
            }
            Action::Slice(change) => {
                let written = match &change {
                    SliceChange::Create(name, nodes) => format!("create {name} {}", names(nodes)),
                    SliceChange::Set(name, nodes) => format!("set {name} {}", names(nodes)),
                    SliceChange::Delete(name) => format!("delete {name}"),
                };
                match change {
                    SliceChange::Create(name, nodes) | SliceChange::Set(name, nodes) => {
                        self.slices.insert(name.clone(), nodes.clone());
                        self.index.set_slice(&name, Some(nodes));
                    }
                    SliceChange::Delete(name) => {
                        self.slices.remove(&name);
                        self.index.set_slice(&name, None);
                    }
                }
                written
            }
        });
    }

    fn blocks(&self, name: &str) -> String {
        join(&self.networks[&NodeName::from_str(name).unwrap()].blocks)
    }

    fn allocation(&self, name: &str) -> String {
        let network = &self.networks[&NodeName::from_str(name).unwrap()];
        let condition = network.allocation.as_ref().unwrap();
        format!("{}: {}", condition.reason, condition.message)
    }

    fn pool_condition(&self, name: &str, type_: &str) -> String {
        let status = self.pools[name].status.as_ref().unwrap();
        let condition = status
            .conditions
            .iter()
            .find(|condition| condition.type_ == type_)
            .unwrap();
        format!("{} {}: {}", condition.status, condition.reason, condition.message)
    }
}

fn wall(second: u64) -> Timestamp {
    Timestamp::from_second(i64::try_from(second).unwrap()).unwrap()
}

fn held(block: &str) -> Held {
    Held {
        block: block.parse().unwrap(),
        pool: "default".to_owned(),
    }
}

fn join(blocks: &[Held]) -> String {
    let blocks: Vec<String> = blocks.iter().map(|held| held.block.to_string()).collect();
    blocks.join(",")
}

fn names(nodes: &[NodeSliceEntry]) -> String {
    let nodes: Vec<String> = nodes
        .iter()
        .map(|node| format!("{}={}", node.name, node.blocks.join("+")))
        .collect();
    nodes.join(",")
}

#[test]
fn a_node_that_appears_gets_a_network_a_block_and_a_place_in_a_slice() {
    let mut cluster = Cluster::with_pool("10.244.0.0/16", 24);
    cluster.node("n1", "u1", "10.224.0.4");
    assert_eq!(
        cluster.settle(),
        [
            "create n1 10.244.0.0/24",
            "pool default 1/256",
            "n1 True Granted: the node has the blocks it asks for",
            "create nodes-0 n1=10.244.0.0/24",
        ]
    );
    assert_eq!(
        cluster.pool_condition("default", "Ready"),
        "True Ready: the pool gives out blocks"
    );
    cluster.node("n2", "u2", "10.224.0.5");
    assert_eq!(
        cluster.settle(),
        [
            "create n2 10.244.1.0/24",
            "pool default 2/256",
            "n2 True Granted: the node has the blocks it asks for",
            "set nodes-0 n1=10.244.0.0/24,n2=10.244.1.0/24",
        ]
    );
}

#[test]
fn nothing_is_planned_before_everything_is_listed() {
    let mut cluster = Cluster::with_pool("10.244.0.0/16", 24);
    cluster.node("n1", "u1", "10.224.0.4");
    cluster.settle();
    // `restarted` checks that a plan without the pools is empty.
    let mut cluster = cluster.restarted();
    assert_eq!(cluster.settle(), [""; 0]);
}

#[test]
fn a_restart_writes_nothing_and_goes_on_behind_the_last_block() {
    let mut cluster = Cluster::with_pool("10.244.0.0/16", 24);
    for node in 0..450 {
        cluster.node(
            &format!("n{node:03}"),
            &format!("u{node}"),
            &format!("10.224.{}.{}", node / 250, node % 250),
        );
    }
    cluster.pool(
        "more",
        serde_json::json!({ "cidrs": ["10.240.0.0/16"], "blockSize": 26 }),
    );
    cluster.settle();
    assert_eq!(
        cluster.slices.values().map(Vec::len).collect::<Vec<_>>(),
        [200, 200, 50]
    );
    let mut cluster = cluster.restarted();
    assert_eq!(cluster.settle(), [""; 0]);
    cluster.node("n999", "u999", "10.224.9.9");
    let writes = cluster.settle();
    assert!(
        writes[0].starts_with("create n999 10.240.48.128/26"),
        "{writes:?}"
    );
    assert_eq!(
        writes.iter().filter(|write| write.contains("nodes-")).count(),
        1,
        "{writes:?}"
    );
}

#[test]
fn a_node_gets_the_blocks_it_asks_for_as_long_as_there_are_some() {
    let mut cluster = Cluster::with_pool("10.244.0.0/24", 26);
    cluster.node("n1", "u1", "10.224.0.4");
    cluster.node("n2", "u2", "10.224.0.5");
    cluster.settle();
    cluster.wants("n1", 4);
    cluster.settle();
    assert_eq!(
        cluster.blocks("n1"),
        "10.244.0.0/26,10.244.0.128/26,10.244.0.192/26"
    );
    let exhausted = "pool default has no free /26 block: 4 of 4 given out";
    assert_eq!(
        cluster.allocation("n1"),
        format!("PoolExhausted: has 3 of 4 blocks: {exhausted}")
    );
    assert_eq!(
        cluster.allocation("n2"),
        "Granted: the node has the blocks it asks for"
    );
    assert_eq!(
        cluster.pool_condition("default", "Exhausted"),
        format!("True NoFreeBlock: {exhausted}")
    );
    // Room appears: the pool grows live.
    cluster.pool(
        "default",
        serde_json::json!({ "cidrs": ["10.244.0.0/24", "10.99.0.0/24"], "blockSize": 26 }),
    );
    cluster.settle();
    assert_eq!(
        cluster.blocks("n1"),
        "10.244.0.0/26,10.244.0.128/26,10.244.0.192/26,10.99.0.0/26"
    );
    assert_eq!(
        cluster.allocation("n1"),
        "Granted: the node has the blocks it asks for"
    );
    assert_eq!(
        cluster.pool_condition("default", "Exhausted"),
        "False BlocksFree: no node waits for a block"
    );
}

#[test]
fn a_node_without_any_block_goes_before_one_that_wants_another() {
    let mut cluster = Cluster::with_pool("10.244.0.0/25", 26);
    cluster.node("a", "u1", "10.224.0.4");
    cluster.settle();
    cluster.wants("a", 2);
    cluster.node("b", "u2", "10.224.0.5");
    cluster.settle();
    assert_eq!(cluster.blocks("a"), "10.244.0.0/26");
    assert_eq!(cluster.blocks("b"), "10.244.0.64/26");
}

#[test]
fn a_node_that_is_gone_keeps_its_blocks_from_others_for_the_grace() {
    let mut cluster = Cluster::with_pool("10.244.0.0/24", 24);
    cluster.node("n1", "u1", "10.224.0.4");
    cluster.settle();
    cluster.remove_node("n1");
    assert_eq!(cluster.settle(), ["delete nodes-0"]);
    cluster.node("n2", "u2", "10.224.0.5");
    cluster.settle();
    assert_eq!(cluster.blocks("n2"), "");
    cluster.later(GRACE - Duration::from_secs(1));
    assert_eq!(cluster.blocks("n2"), "");
    assert_eq!(
        cluster.index.plan(cluster.now, wall(0)).again_at,
        Some(cluster.now + Duration::from_secs(1))
    );
    let writes = cluster.later(Duration::from_secs(1));
    assert_eq!(
        writes,
        [
            "delete n1",
            "set n2 10.244.0.0/24",
            "pool default 1/1",
            "n2 True Granted: the node has the blocks it asks for",
            "set nodes-0 n2=10.244.0.0/24",
        ]
    );
}

#[test]
fn the_grace_outlives_a_restart() {
    let mut cluster = Cluster::with_pool("10.244.0.0/24", 24);
    cluster.node("n1", "u1", "10.224.0.4");
    cluster.settle();
    cluster.remove_node("n1");
    cluster.node("n2", "u2", "10.224.0.5");
    cluster.settle();
    cluster.now += Duration::from_secs(20);
    let mut cluster = cluster.restarted();
    cluster.settle();
    cluster.later(Duration::from_secs(29));
    assert_eq!(cluster.blocks("n2"), "");
    cluster.later(Duration::from_secs(1));
    assert_eq!(cluster.blocks("n2"), "10.244.0.0/24");
}

#[test]
fn a_node_made_again_under_its_name_inherits_nothing() {
    let mut cluster = Cluster::with_pool("10.244.0.0/23", 24);
    cluster.node("n1", "u1", "10.224.0.4");
    cluster.settle();
    cluster.node("n1", "u2", "10.224.0.4");
    let writes = cluster.settle();
    assert_eq!(writes[0], "delete n1");
    assert!(
        writes.contains(&"create n1 10.244.1.0/24".to_owned()),
        "{writes:?}"
    );
    assert_eq!(
        cluster.networks[&NodeName::from_str("n1").unwrap()]
            .node_uid
            .as_str(),
        "u2"
    );
    cluster.node("n2", "u3", "10.224.0.5");
    cluster.settle();
    assert_eq!(cluster.blocks("n2"), "");
    cluster.later(GRACE);
    assert_eq!(cluster.blocks("n2"), "10.244.0.0/24");
}

#[test]
fn a_node_that_is_away_for_less_than_the_grace_keeps_everything() {
    let mut cluster = Cluster::with_pool("10.244.0.0/23", 24);
    cluster.node("n1", "u1", "10.224.0.4");
    cluster.settle();
    cluster.remove_node("n1");
    cluster.later(Duration::from_secs(20));
    cluster.node("n1", "u1", "10.224.0.4");
    assert_eq!(cluster.settle(), ["create nodes-0 n1=10.244.0.0/24"]);
    assert_eq!(cluster.later(GRACE), [""; 0]);
}

#[test]
fn a_network_deleted_by_hand_comes_back_with_the_blocks_its_pods_use() {
    let mut cluster = Cluster::with_pool("10.244.0.0/23", 24);
    cluster.node("n1", "u1", "10.224.0.4");
    cluster.settle();
    cluster.remove_network("n1");
    let writes = cluster.settle();
    assert!(
        writes.contains(&"create n1 10.244.0.0/24".to_owned()),
        "{writes:?}"
    );
}

#[test]
fn blocks_taken_out_of_a_network_by_hand_are_written_back() {
    let mut cluster = Cluster::with_pool("10.244.0.0/23", 24);
    cluster.node("n1", "u1", "10.224.0.4");
    cluster.settle();
    cluster.foreign_network("n1", "u1", &[]);
    let writes = cluster.settle();
    assert_eq!(writes[0], "set n1 10.244.0.0/24");
}

#[test]
fn two_nodes_with_the_same_block_are_both_named_until_one_network_is_deleted() {
    let mut cluster = Cluster::with_pool("10.244.0.0/22", 24);
    cluster.node("n1", "u1", "10.224.0.4");
    cluster.node("n2", "u2", "10.224.0.5");
    cluster.foreign_network("n1", "u1", &["10.244.0.0/24"]);
    cluster.foreign_network("n2", "u2", &["10.244.0.128/25"]);
    let plan = cluster.index.plan(cluster.now, wall(0));
    let sentence = "node n1 holds 10.244.0.0/24 and node n2 holds 10.244.0.128/25: \
                    delete the NodeNetwork of the one that may be drained";
    assert_eq!(plan.new_conflicts, [sentence]);
    assert_eq!(cluster.index.plan(cluster.now, wall(0)).new_conflicts, [""; 0]);
    cluster.settle();
    for node in ["n1", "n2"] {
        assert_eq!(cluster.allocation(node), format!("DuplicateBlock: {sentence}"));
    }
    cluster.remove_network("n2");
    cluster.settle();
    assert_eq!(cluster.blocks("n1"), "10.244.0.0/24");
    assert_eq!(cluster.blocks("n2"), "10.244.1.0/24");
    for node in ["n1", "n2"] {
        assert_eq!(
            cluster.allocation(node),
            "Granted: the node has the blocks it asks for"
        );
    }
}

#[test]
fn selectors_say_who_gets_blocks_and_the_more_special_pool_goes_first() {
    let mut cluster = Cluster::with_pool("10.244.0.0/16", 24);
    cluster.pool(
        "gpu",
        serde_json::json!({
            "cidrs": ["10.200.0.0/24"],
            "nodeSelector": {"matchExpressions": [{"key": "gpu", "operator": "Exists"}]},
        }),
    );
    cluster.labelled_node("a", "u1", "10.224.0.4", &[("gpu", "a100")]);
    cluster.labelled_node("b", "u2", "10.224.0.5", &[("gpu", "a100")]);
    cluster.node("c", "u3", "10.224.0.6");
    cluster.settle();
    assert_eq!(cluster.blocks("a"), "10.200.0.0/24");
    assert_eq!(cluster.blocks("b"), "10.244.0.0/24");
    assert_eq!(cluster.blocks("c"), "10.244.1.0/24");
}

#[test]
fn a_node_no_pool_selects_says_so() {
    let mut cluster = Cluster::new();
    cluster.node("n1", "u1", "10.224.0.4");
    cluster.settle();
    assert_eq!(cluster.allocation("n1"), "NoPool: no PodPool selects the node");
    assert_eq!(cluster.slices["nodes-0"][0].blocks, [""; 0]);
    cluster.pool("default", serde_json::json!({ "cidrs": ["10.244.0.0/16"] }));
    cluster.settle();
    assert_eq!(cluster.blocks("n1"), "10.244.0.0/24");
}

#[test]
fn a_pool_that_overlaps_names_the_pair_and_gives_out_nothing() {
    for (cidrs, expected) in [
        (
            vec!["10.224.0.0/12"],
            "False Overlap: 10.224.0.0/12 contains 10.224.0.4, the address of node n1",
        ),
        (
            vec!["10.0.0.0/8"],
            "False Overlap: 10.0.0.0/8 contains 10.224.0.4, the address of node n1",
        ),
        (
            vec!["10.0.128.0/20"],
            "False Overlap: service CIDR 10.0.0.0/16 overlaps pool late 10.0.128.0/20",
        ),
        (
            vec!["10.9.0.0/16", "10.9.8.0/24"],
            "False Overlap: pool late 10.9.0.0/16 overlaps pool late 10.9.8.0/24",
        ),
        (
            vec!["10.244.7.0/24"],
            "False Overlap: pool default 10.244.0.0/24 overlaps pool late 10.244.0.0/25",
        ),
        (
            vec!["10.244.0.7/16"],
            "False Invalid: spec.cidrs[0]: 10.244.0.7/16 has host bits set: the range it lies in is written 10.244.0.0/16",
        ),
    ] {
        let cidrs = if cidrs == ["10.244.7.0/24"] {
            vec!["10.244.0.0/25"]
        } else {
            cidrs
        };
        let mut cluster = Cluster::with_pool("10.244.0.0/24", 26);
        cluster.pool("late", serde_json::json!({ "cidrs": cidrs, "blockSize": 26 }));
        cluster.node("n1", "u1", "10.224.0.4");
        cluster.settle();
        cluster.wants("n1", 5);
        cluster.settle();
        assert_eq!(cluster.pool_condition("late", "Ready"), expected);
        assert_eq!(
            cluster.pool_condition("default", "Ready"),
            "True Ready: the pool gives out blocks"
        );
        assert_eq!(cluster.networks.values().next().unwrap().blocks.len(), 4);
        let message = cluster.allocation("n1");
        assert!(message.contains("; pool late: "), "{message}");
    }
}

#[test]
fn conditions_keep_their_time_while_their_status_stays() {
    let present = changed_condition(None, "T", ("False", "A", "m"), wall(1)).unwrap();
    assert_eq!(
        changed_condition(Some(&present), "T", ("False", "A", "m"), wall(2)),
        None
    );
    let reworded = changed_condition(Some(&present), "T", ("False", "B", "m"), wall(2)).unwrap();
    assert_eq!(reworded.last_transition_time, Time(wall(1)));
    let turned = changed_condition(Some(&reworded), "T", ("True", "C", "m"), wall(3)).unwrap();
    assert_eq!(turned.last_transition_time, Time(wall(3)));
}

#[test]
fn five_thousand_nodes_are_twenty_five_slices() {
    let mut cluster = Cluster::with_pool("10.32.0.0/11", 24);
    for node in 0..5000 {
        let address = Ipv4Addr::from_bits(u32::from_be_bytes([10, 224, 0, 0]) + node);
        cluster.node(&format!("n{node}"), &format!("u{node}"), &address.to_string());
    }
    cluster.settle();
    assert_eq!(cluster.slices.len(), 25);
    cluster.remove_node("n77");
    assert_eq!(cluster.settle().len(), 1);
}

#[derive(Clone, Debug)]
enum Op {
    Node { name: usize, generation: usize },
    RemoveNode(usize),
    Want { name: usize, blocks: u32 },
    RemoveNetwork(usize),
    Wait(u64),
    Settle,
    Restart,
}

fn any_op() -> impl Strategy<Value = Op> {
    let name = 0..5_usize;
    prop_oneof![
        5 => (name.clone(), 0..3_usize).prop_map(|(name, generation)| Op::Node { name, generation }),
        3 => name.clone().prop_map(Op::RemoveNode),
        3 => (name.clone(), 1..4_u32).prop_map(|(name, blocks)| Op::Want { name, blocks }),
        1 => name.prop_map(Op::RemoveNetwork),
        3 => (1..40_u64).prop_map(Op::Wait),
        6 => Just(Op::Settle),
        1 => Just(Op::Restart),
    ]
}

proptest! {
    #[test]
    fn two_nodes_never_share_a_block_and_blocks_rest_before_they_move(
        ops in prop::collection::vec(any_op(), 1..60),
    ) {
        let mut cluster = Cluster::with_pool("10.244.0.0/28", 30);
        // Who had a block last, and the last time it had a Node.
        let mut last: BTreeMap<Block, (NodeUid, Duration)> = BTreeMap::new();
        for op in ops {
            match op {
                Op::Node { name, generation } => {
                    let uid = format!("u{name}-{generation}");
                    cluster.node(&format!("n{name}"), &uid, &format!("10.224.0.{name}"));
                }
                Op::RemoveNode(name) => cluster.remove_node(&format!("n{name}")),
                Op::Want { name, blocks } => {
                    let name = format!("n{name}");
                    if cluster.networks.contains_key(&NodeName::from_str(&name).unwrap()) {
                        cluster.wants(&name, blocks);
                    }
                }
                Op::RemoveNetwork(name) => cluster.remove_network(&format!("n{name}")),
                Op::Wait(seconds) => {
                    cluster.later(Duration::from_secs(seconds));
                }
                Op::Settle => {
                    cluster.settle();
                }
                Op::Restart => {
                    // What no object shows any more is forgotten, see `Index`.
                    let shown: BTreeSet<Block> = (cluster.networks.values())
                        .flat_map(|network| network.blocks.iter().map(|held| held.block))
                        .collect();
                    last.retain(|block, _| shown.contains(block));
                    cluster = cluster.restarted();
                }
            }
            let mut owners: BTreeMap<Block, NodeUid> = BTreeMap::new();
            for network in cluster.networks.values() {
                for held in &network.blocks {
                    prop_assert_eq!(owners.insert(held.block, network.node_uid.clone()), None);
                }
            }
            let alive: BTreeSet<NodeUid> = cluster.nodes.values().map(|node| node.uid.clone()).collect();
            for (block, owner) in owners {
                if let Some((before, until)) = last.get(&block)
                    && *before != owner
                {
                    prop_assert!(cluster.now >= *until + GRACE, "{block} moved too soon");
                }
                let until = match last.get(&block) {
                    Some((before, until)) if *before == owner && !alive.contains(&owner) => *until,
                    _ => cluster.now,
                };
                last.insert(block, (owner, until));
            }
        }
        cluster.later(GRACE);
        cluster.later(GRACE);
        prop_assert_eq!(cluster.settle(), Vec::<String>::new());
        let listed: BTreeSet<String> = cluster.slices.values().flatten().map(|node| node.uid.clone()).collect();
        let alive: BTreeSet<String> = cluster.nodes.values().map(|node| node.uid.to_string()).collect();
        prop_assert_eq!(listed, alive);
        let waiting = cluster.networks.values().any(|network| network.blocks.is_empty());
        let given: usize = cluster.networks.values().map(|network| network.blocks.len()).sum();
        prop_assert!(!waiting || given == 4);
    }
}
