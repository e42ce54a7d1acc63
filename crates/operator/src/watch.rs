//! The loop: watch events into the index, its plan into writes, their answers into the index.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::str::FromStr;
use std::time::Duration;

use futures::stream::{BoxStream, StreamExt, select_all};
use k8s_openapi::jiff::Timestamp;
use kube::api::ObjectMeta;
use kube::core::Selector;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep_until};
use weft_api::{NodeNetwork, NodeSlice, PodPool};
use weft_model::{NodeName, UserError};

use crate::index::{Action, Held, Index, Network, Node, Pool, Source};
use crate::write::{Answer, WriteError, Writer};

/// Events that are there at once are planned for once.
const BURST: usize = 4096;

/// The first wait after a write that failed; doubled up to [`MAX_RETRY`].
const MIN_RETRY: Duration = Duration::from_millis(500);
const MAX_RETRY: Duration = Duration::from_secs(30);

/// The few fields of a Node that matter: the rest, most of its 10 KiB, is not
/// even decoded.
#[derive(Resource, Clone, Debug, Serialize, Deserialize)]
#[resource(inherit = "k8s_openapi::api::core::v1::Node")]
pub(crate) struct SlimNode {
    metadata: ObjectMeta,
    status: Option<SlimStatus>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct SlimStatus {
    #[serde(default)]
    addresses: Vec<SlimAddress>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct SlimAddress {
    #[serde(rename = "type")]
    type_: String,
    address: String,
}

enum Update {
    Node(Event<SlimNode>),
    Network(Event<NodeNetwork>),
    Pool(Event<PodPool>),
    Slice(Event<NodeSlice>),
}

/// Runs for ever.
pub(crate) async fn run(client: Client, index: Index) {
    let mut updates = select_all([
        updates(Api::all(client.clone()), Update::Node),
        updates(Api::all(client.clone()), Update::Network),
        updates(Api::all(client.clone()), Update::Pool),
        updates(Api::all(client.clone()), Update::Slice),
    ])
    .ready_chunks(BURST);
    let mut state = State::new(index, Writer::new(client));
    loop {
        let wake = state.wake;
        let changed = tokio::select! {
            burst = updates.next() => match burst {
                Some(burst) => {
                    let changes = burst.into_iter().map(|update| state.apply(update));
                    changes.fold(false, |any, changed| any | changed)
                }
                None => return,
            },
            () = async { sleep_until(wake.unwrap_or_else(Instant::now)).await }, if wake.is_some() => true,
        };
        if changed {
            state.work().await;
        }
    }
}

struct State {
    index: Index,
    writer: Writer,
    /// Names met since a relist began.
    seen: BTreeMap<Source, BTreeSet<String>>,
    /// The newest version applied of each object. Answers to writes overtake
    /// the watch: what it brings afterwards may be older.
    versions: BTreeMap<(Source, String), u64>,
    started: Instant,
    wake: Option<Instant>,
    retry: Duration,
}

// === impl State ===

impl State {
    fn new(index: Index, writer: Writer) -> Self {
        Self {
            index,
            writer,
            seen: BTreeMap::new(),
            versions: BTreeMap::new(),
            started: Instant::now(),
            wake: None,
            retry: MIN_RETRY,
        }
    }

    /// Writes until there is nothing left to write.
    async fn work(&mut self) {
        loop {
            let plan = self.index.plan(self.started.elapsed(), Timestamp::now());
            self.wake = plan.again_at.map(|at| self.started + at);
            for conflict in &plan.new_conflicts {
                tracing::error!("two nodes claim the same addresses: {conflict}");
            }
            if plan.actions.is_empty() {
                self.retry = MIN_RETRY;
                return;
            }
            let answers = self.writer.write(plan.actions).await;
            let mut failed: Vec<(Action, WriteError)> = Vec::new();
            for (action, answer) in answers {
                match answer {
                    Ok(answer) => self.feed_back(&action, answer),
                    Err(error) => failed.push((action, error)),
                }
            }
            if let Some((action, error)) = failed.first() {
                tracing::warn!(failed = failed.len(), first = ?action, %error, "writes failed, trying again");
                let retry = Instant::now() + self.retry;
                self.wake = Some(self.wake.map_or(retry, |wake| wake.min(retry)));
                self.retry = (self.retry * 2).min(MAX_RETRY);
                return;
            }
        }
    }

    fn feed_back(&mut self, action: &Action, answer: Answer) {
        match answer {
            Answer::Network(network) => {
                self.event(Source::Networks, Event::Apply(network), set_network);
            }
            Answer::Pool(pool) => {
                self.event(Source::Pools, Event::Apply(pool), set_pool);
            }
            Answer::Slice(slice) => {
                self.event(Source::Slices, Event::Apply(slice), set_slice);
            }
            Answer::Deleted => match action {
                Action::DeleteNetwork { name, .. } => self.index.deletion_accepted(name),
                Action::Slice(change) => {
                    self.index.set_slice(change.name(), None);
                }
                _ => {}
            },
        }
    }

    fn apply(&mut self, update: Update) -> bool {
        match update {
            Update::Node(event) => self.event(Source::Nodes, event, set_node),
            Update::Network(event) => self.event(Source::Networks, event, set_network),
            Update::Pool(event) => self.event(Source::Pools, event, set_pool),
            Update::Slice(event) => self.event(Source::Slices, event, set_slice),
        }
    }

    fn event<K: Resource>(
        &mut self,
        source: Source,
        event: Event<K>,
        set: fn(&mut Index, &str, Option<K>) -> bool,
    ) -> bool {
        match event {
            Event::Init => {
                self.seen.insert(source, BTreeSet::new());
                false
            }
            Event::InitApply(object) => {
                let name = object.name_any();
                self.seen.entry(source).or_default().insert(name.clone());
                // A list is the truth, also if etcd went back in time.
                self.versions.insert((source, name.clone()), version(&object));
                set(&mut self.index, &name, Some(object))
            }
            Event::InitDone => {
                let seen = self.seen.remove(&source).unwrap_or_default();
                for name in self.index.names(source) {
                    if !seen.contains(&name) {
                        self.versions.remove(&(source, name.clone()));
                        set(&mut self.index, &name, None);
                    }
                }
                self.index.listed(source);
                true
            }
            Event::Apply(object) => {
                let name = object.name_any();
                let version = version(&object);
                let known = self.versions.entry((source, name.clone())).or_default();
                if version < *known {
                    return false;
                }
                *known = version;
                set(&mut self.index, &name, Some(object))
            }
            Event::Delete(object) => {
                let name = object.name_any();
                self.versions.remove(&(source, name.clone()));
                set(&mut self.index, &name, None)
            }
        }
    }
}

/// The resource version as a number, which it is on every API server; 0 if not.
fn version<K: Resource>(object: &K) -> u64 {
    object
        .meta()
        .resource_version
        .as_deref()
        .and_then(|version| version.parse().ok())
        .unwrap_or(0)
}

fn updates<K>(api: Api<K>, wrap: impl Fn(Event<K>) -> Update + Send + 'static) -> BoxStream<'static, Update>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    watcher(api, watcher::Config::default())
        .default_backoff()
        .filter_map(|event| async move {
            event
                .inspect_err(|error| {
                    tracing::warn!(kind = %K::kind(&()), %error, "watch failed, trying again");
                })
                .ok()
        })
        .map(wrap)
        .boxed()
}

fn set_node(index: &mut Index, name: &str, node: Option<SlimNode>) -> bool {
    with_name(name, |name| {
        index.set_node(name, node.and_then(|node| read_node(name, node)))
    })
}

fn set_network(index: &mut Index, name: &str, network: Option<NodeNetwork>) -> bool {
    with_name(name, |name| {
        index.set_network(name, network.and_then(|network| read_network(name, network)))
    })
}

fn set_pool(index: &mut Index, name: &str, pool: Option<PodPool>) -> bool {
    index.set_pool(name, pool.map(|pool| read_pool(name, pool)))
}

fn set_slice(index: &mut Index, name: &str, slice: Option<NodeSlice>) -> bool {
    index.set_slice(name, slice.map(|slice| slice.spec.nodes))
}

fn with_name(name: &str, set: impl FnOnce(&NodeName) -> bool) -> bool {
    match NodeName::from_str(name) {
        Ok(name) => set(&name),
        Err(error) => {
            tracing::error!(%error, "ignoring the object");
            false
        }
    }
}

fn read_node(name: &NodeName, node: SlimNode) -> Option<Node> {
    let uid = node.metadata.uid.unwrap_or_default().parse();
    let uid = uid
        .inspect_err(|error| tracing::error!(%name, %error, "ignoring the Node"))
        .ok()?;
    let addresses = node.status.unwrap_or_default().addresses.into_iter();
    Some(Node {
        uid,
        labels: node.metadata.labels.unwrap_or_default(),
        addresses: addresses
            .filter(|address| address.type_ == "InternalIP")
            .filter_map(|address| address.address.parse().ok())
            .collect(),
    })
}

fn read_network(name: &NodeName, network: NodeNetwork) -> Option<Network> {
    let node_uid = network.spec.uid();
    let node_uid = node_uid
        .inspect_err(|error| tracing::error!(%name, %error, "ignoring the NodeNetwork"))
        .ok()?;
    let status = network.status.unwrap_or_default();
    let blocks = network.spec.blocks.into_iter().filter_map(|block| {
        let parsed = block.cidr.parse();
        let parsed = parsed
            .inspect_err(
                |error| tracing::error!(%name, %error, "taking a block that is none out of the NodeNetwork"),
            )
            .ok()?;
        Some(Held {
            block: parsed,
            pool: block.pool,
        })
    });
    Some(Network {
        node_uid,
        blocks: blocks.collect(),
        wanted: status.wanted_blocks.unwrap_or(1),
        allocation: status.allocation,
        deleting: network.metadata.deletion_timestamp.is_some(),
        object_uid: network.metadata.uid.unwrap_or_default(),
    })
}

fn read_pool(name: &str, pool: PodPool) -> Pool {
    let ranges = pool
        .spec
        .ranges()
        .map_err(|error| UserError::from(error).message().to_owned());
    let selector = pool.spec.node_selector.map(Selector::try_from).transpose();
    let (ranges, selector) = match selector {
        Ok(selector) => (ranges, selector),
        Err(error) => (Err(format!("spec.nodeSelector: {error}")), None),
    };
    if let Err(error) = &ranges {
        tracing::error!(pool = name, "the PodPool gives out no blocks: {error}");
    }
    let created = pool.metadata.creation_timestamp.map(|time| time.0);
    Pool {
        uid: pool.metadata.uid.unwrap_or_default(),
        created: created.unwrap_or_default(),
        ranges,
        selector: selector.filter(|selector| !selector.selects_all()),
        status: pool.status,
    }
}
