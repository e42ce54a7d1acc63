use std::str::FromStr;

use weft_api::PodPoolSpec;
use weft_model::UserError;

use super::*;

mod adopting;
mod grants;
mod modes;
mod pools;
mod random;
mod retiring;

const GRACE: Duration = Duration::from_secs(30);

/// Without pauses, so that what is to be written is written.
const PACE: Pace = Pace {
    grace: GRACE,
    slices: Duration::ZERO,
    counts: Duration::ZERO,
    unready: Duration::ZERO,
};

/// An API server that does what the index says and tells it what became of it.
struct Cluster {
    index: Index,
    pace: Pace,
    /// What the Lease says.
    note: Note,
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
            index: Index::new(PACE, vec!["10.0.0.0/16".parse().unwrap()], &Note::default()),
            pace: PACE,
            note: Note::default(),
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
        for source in Source::ALL {
            self.index.listed(source);
        }
        self
    }

    /// The same cluster under an operator that has just started.
    fn restarted(mut self) -> Self {
        self.index = Index::new(self.pace, vec!["10.0.0.0/16".parse().unwrap()], &self.note);
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

    /// A node with a range that kube-controller-manager chose.
    fn ranged_node(
        &mut self,
        name: &str,
        uid: &str,
        address: &str,
        pod_cidrs: &[&str],
        labels: &[(&str, &str)],
    ) {
        self.labelled_node(name, uid, address, labels);
        self.change_node(name, |node| {
            node.pod_cidrs = pod_cidrs.iter().map(ToString::to_string).collect();
        });
    }

    fn change_node(&mut self, name: &str, change: impl FnOnce(&mut Node)) {
        let name = NodeName::from_str(name).unwrap();
        let node = self.nodes.get_mut(&name).unwrap();
        change(node);
        self.index.set_node(&name, Some(node.clone()));
    }

    fn labelled_node(&mut self, name: &str, uid: &str, address: &str, labels: &[(&str, &str)]) {
        let node = Node {
            uid: uid.parse().unwrap(),
            labels: labels
                .iter()
                .map(|(k, v)| (k.to_string(), v.to_string()))
                .collect(),
            addresses: vec![address.parse().unwrap()],
            pod_cidrs: Vec::new(),
            unavailable: None,
            taints: Taints::default(),
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
        self.report(name, |network| network.wanted = blocks);
    }

    /// The agent of a node says something. True if that makes a plan necessary.
    fn report(&mut self, name: &str, change: impl FnOnce(&mut Network)) -> bool {
        let name = NodeName::from_str(name).unwrap();
        let network = self.networks.get_mut(&name).unwrap();
        change(network);
        self.index.set_network(&name, Some(network.clone()))
    }

    /// The agent counts a block.
    fn counts(&mut self, name: &str, block: &str, used: u32, cooling: u32, retiring: bool) -> bool {
        let counted = BlockUse {
            cidr: block.to_owned(),
            used,
            cooling,
            retiring,
        };
        self.report(name, |network| {
            network.uses.insert(block.parse().unwrap(), counted);
        })
    }

    fn ready(&mut self, name: &str, status: &str, message: &str) {
        let ready = changed_condition(None, "Ready", (status, "Agent", message), wall(0));
        self.report(name, |network| network.ready = ready);
    }

    /// Somebody else than the operator writes a NodeNetwork.
    fn foreign_network(&mut self, name: &str, uid: &str, blocks: &[&str]) {
        let name = NodeName::from_str(name).unwrap();
        let network = Network {
            blocks: blocks.iter().map(|block| held(block)).collect(),
            ..network(uid)
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
            let due = if plan.actions.is_empty() {
                plan.statuses
            } else {
                plan.actions
            };
            if due.is_empty() {
                return std::mem::take(&mut self.writes);
            }
            self.note = plan.note;
            for action in due {
                self.write(action);
            }
        }
        panic!("the plan never ends: {:?}", self.writes);
    }

    /// Dies after some of its writes.
    fn crashed(mut self, after: usize) -> Self {
        let plan = self.index.plan(self.now, wall(1_000 + self.now.as_secs()));
        self.note = plan.note;
        for action in plan.actions.into_iter().chain(plan.statuses).take(after) {
            self.write(action);
        }
        self.restarted()
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
                    blocks,
                    ..network(uid.as_str())
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
                self.index.status_written(&name, self.now);
                self.index.set_pool(&name, Some(pool.clone()));
                written
            }
            Action::SetNodeCondition { name, uid, condition } => {
                let node = self.nodes.get_mut(&name).unwrap();
                assert_eq!(node.uid, uid);
                let written = format!(
                    "{name} unavailable {} {}: {}",
                    condition.status, condition.reason, condition.message
                );
                node.unavailable = Some(condition);
                self.index.set_node(&name, Some(node.clone()));
                written
            }
            Action::SetTaint { name, on, taints } => {
                let node = self.nodes.get_mut(&name).unwrap();
                assert_eq!(node.taints, taints);
                node.taints = Taints {
                    count: if on { taints.count + 1 } else { taints.count - 1 },
                    ours: on.then_some(taints.count),
                };
                self.index.set_node(&name, Some(node.clone()));
                format!("{name} taint {on}")
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
        let condition = network.allocation.as_ref();
        condition.map_or_else(String::new, |condition| {
            format!("{}: {}", condition.reason, condition.message)
        })
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

fn network(uid: &str) -> Network {
    Network {
        object_uid: "foreign".to_owned(),
        node_uid: uid.parse().unwrap(),
        blocks: Vec::new(),
        wanted: 1,
        allocation: None,
        ready: None,
        route_overlap: None,
        uses: BTreeMap::new(),
        deleting: false,
    }
}

fn held(block: &str) -> Held {
    Held {
        block: block.parse().unwrap(),
        pool: "default".to_owned(),
        retiring: false,
    }
}

fn join(blocks: &[Held]) -> String {
    let blocks: Vec<String> = blocks
        .iter()
        .map(|held| format!("{}{}", held.block, if held.retiring { "!" } else { "" }))
        .collect();
    blocks.join(",")
}

fn names(nodes: &[NodeSliceEntry]) -> String {
    let nodes: Vec<String> = nodes
        .iter()
        .map(|node| format!("{}={}", node.name, node.blocks.join("+")))
        .collect();
    nodes.join(",")
}
