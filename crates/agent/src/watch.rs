//! Watches the four things a node needs to know and keeps the [`Index`] by them.
//!
//! Everything else in the cluster stays unwatched: what an agent costs the API server does not depend on how many
//! pods run elsewhere.

use crate::desired::Desired;
use crate::index::{Conflict, Grant, Index, OwnNode, Pool, Source};
use futures::StreamExt;
use futures::stream::{BoxStream, select_all};
use k8s_openapi::api::core::v1::Node as KubeNode;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt};
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use weft_api::{NodeNetwork, NodeNetworkStatus, NodeSlice, PodPool};
use weft_model::{Node, NodeName};

/// A burst of events, such as a relist, is compiled once.
const BURST: usize = 4096;
/// Changes of other nodes come in company: one that is replaced goes and comes.
const GATHER: Duration = Duration::from_millis(100);
/// How long the nodes of a slice that is gone count all the same: an operator that leads writes the slice anew at once,
/// another one leads within 17 s, and what is another node's by then is no longer theirs anyhow.
const LOST: Duration = Duration::from_secs(30);
/// How long the API may take for its first answers before the agent goes on from what it knew.
const PATIENCE: Duration = Duration::from_secs(3);

#[expect(
    clippy::large_enum_variant,
    reason = "one at a time exists, on its way into the index"
)]
enum Update {
    Node(Event<KubeNode>),
    Network(Event<NodeNetwork>),
    Pool(Event<PodPool>),
    Slice(Event<NodeSlice>),
    /// A list or watch failed, and will be tried again.
    Failed,
}

/// What the watches have found out so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    /// What the kernel should hold; `None` as long as it is not known in full.
    pub desired: Option<Arc<Desired>>,
    /// Why `desired` is `None`, for people.
    pub waiting_for: String,
}

/// Watches until the process ends and publishes each change of the view. `saved` stands in while the API can't be
/// asked, unless it is of another Node object: that one's blocks may be a third node's by now.
///
/// `listed` gets what the node's NodeNetwork says whenever it is listed, not when it changes: the node's own words come
/// back only in a past that was restored.
pub async fn run(
    client: Client,
    name: NodeName,
    saved: Option<Arc<Desired>>,
    view: watch::Sender<View>,
    listed: watch::Sender<Option<NodeNetworkStatus>>,
) {
    let mut state = State {
        index: Index::new(name.clone()),
        seen: BTreeSet::new(),
        conflicts: Vec::new(),
        saved,
        silent: false,
        compiled: false,
        forget_at: BTreeMap::new(),
    };
    let own = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let all = watcher::Config::default();
    let mut updates = select_all([
        updates(Api::all(client.clone()), own.clone(), Update::Node),
        updates(Api::all(client.clone()), own, Update::Network),
        updates(Api::all(client.clone()), all.clone(), Update::Pool),
        updates(Api::all(client), all, Update::Slice),
    ])
    .ready_chunks(BURST);
    view.send_if_modified(|current| state.publish(current));
    let patience = sleep(PATIENCE);
    tokio::pin!(patience);
    loop {
        tokio::select! {
            burst = updates.next() => {
                let Some(mut burst) = burst else { return };
                let until = Instant::now() + GATHER;
                while burst.iter().all(Update::is_of_others) {
                    let Ok(Some(more)) = timeout_at(until, updates.next()).await else { break };
                    burst.extend(more);
                }
                for update in burst {
                    if let Update::Network(Event::InitApply(network)) = &update {
                        listed.send_replace(Some(network.status.clone().unwrap_or_default()));
                    }
                    state.apply(update);
                }
            }
            () = &mut patience, if !state.silent => state.silent = true,
            () = sleep_until(state.forget_at.values().min().copied().unwrap_or_else(Instant::now)),
                if !state.forget_at.is_empty() => {}
        }
        state.forget_lost(Instant::now());
        view.send_if_modified(|current| state.publish(current));
    }
}

fn updates<K>(
    api: Api<K>,
    config: watcher::Config,
    wrap: impl Fn(Event<K>) -> Update + Send + 'static,
) -> BoxStream<'static, Update>
where
    K: kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    // Errors are retried by the watcher's backoff; here they only become visible.
    let update = move |event: watcher::Result<Event<K>>| match event {
        Ok(event) => wrap(event),
        Err(error) => {
            tracing::warn!(kind = %K::kind(&()), %error, "watch failed, trying again");
            Update::Failed
        }
    };
    watcher(api, config).default_backoff().map(update).boxed()
}

struct State {
    index: Index,
    /// Names met since a relist began, by source.
    seen: BTreeSet<(Source, String)>,
    conflicts: Vec<Conflict>,
    /// What an earlier agent carried out last.
    saved: Option<Arc<Desired>>,
    /// Whether the API failed to answer, or did not in time.
    silent: bool,
    /// Whether the API has told everything once.
    compiled: bool,
    /// When slices that are gone are forgotten.
    forget_at: BTreeMap<String, Instant>,
}

// === impl Update ===

impl Update {
    /// Whether it is a change of a slice after the first list.
    fn is_of_others(&self) -> bool {
        matches!(self, Self::Slice(Event::Apply(_) | Event::Delete(_)))
    }
}

// === impl State ===

impl State {
    fn apply(&mut self, update: Update) {
        match update {
            Update::Node(event) => self.event(Source::Node, event, |index, name, node| {
                // An object that can't be read keeps what it was: taking its blocks away would cut its pods off.
                match node {
                    None => index.set_node(None),
                    Some(node) => {
                        if let Some(own) = own_node(name, &node) {
                            index.set_node(Some(own));
                        }
                    }
                }
            }),
            Update::Network(event) => {
                self.event(Source::Network, event, |index, name, network| match network {
                    None => index.set_grant(None),
                    Some(network) => {
                        if let Some(grant) = grant(name, &network) {
                            index.set_grant(Some(grant));
                        }
                    }
                });
            }
            Update::Pool(event) => self.event(Source::Pools, event, |index, name, pool| match pool {
                None => index.set_pool(name, None),
                // An invalid pool keeps what it was: the operator says in its conditions what is wrong with it.
                Some(pool) => match pool.spec.ranges() {
                    Ok(ranges) => index.set_pool(
                        name,
                        Some(Pool {
                            cidrs: ranges.cidrs.iter().map(|cidr| cidr.net()).collect(),
                            non_masquerade: ranges.non_masquerade,
                        }),
                    ),
                    Err(error) => tracing::error!(pool = name, %error, "ignoring an invalid PodPool"),
                },
            }),
            Update::Slice(event) => self.event(Source::Slices, event, |index, name, slice| match slice {
                Some(slice) => index.set_slice(name, nodes(name, &slice)),
                None => index.lose_slice(name),
            }),
            Update::Failed => self.silent = true,
        }
    }

    fn event<K: kube::Resource<DynamicType = ()>>(
        &mut self,
        source: Source,
        event: Event<K>,
        set: impl Fn(&mut Index, &str, Option<K>),
    ) {
        match event {
            Event::Init => self.seen.retain(|(of, _)| *of != source),
            Event::InitApply(object) => {
                let name = object.name_any();
                self.seen.insert((source, name.clone()));
                set(&mut self.index, &name, Some(object));
            }
            Event::InitDone => {
                let (here, others) = std::mem::take(&mut self.seen)
                    .into_iter()
                    .partition(|(of, _)| *of == source);
                self.seen = others;
                let names: BTreeSet<String> = BTreeSet::into_iter(here).map(|(_, name)| name).collect();
                match source {
                    Source::Pools => self.index.retain_pools(&names),
                    Source::Slices => self.index.retain_slices(&names),
                    Source::Node if names.is_empty() => self.index.set_node(None),
                    Source::Network if names.is_empty() => self.index.set_grant(None),
                    Source::Node | Source::Network => {}
                }
                self.index.listed(source);
            }
            Event::Apply(object) => {
                let name = object.name_any();
                set(&mut self.index, &name, Some(object));
            }
            Event::Delete(object) => set(&mut self.index, &object.name_any(), None),
        }
    }

    /// Forgets slices that have been gone for long enough.
    fn forget_lost(&mut self, now: Instant) {
        let lost: BTreeSet<String> = self.index.lost_slices().map(str::to_owned).collect();
        self.forget_at.retain(|name, _| lost.contains(name));
        for name in lost {
            let at = *self.forget_at.entry(name.clone()).or_insert(now + LOST);
            if at <= now {
                self.index.forget_slice(&name);
                self.forget_at.remove(&name);
            }
        }
    }

    fn publish(&mut self, current: &mut View) -> bool {
        let next = match self.index.desired() {
            Some((desired, conflicts)) => {
                for conflict in conflicts
                    .iter()
                    .filter(|conflict| !self.conflicts.contains(conflict))
                {
                    tracing::error!(
                        prefix = %conflict.prefix, kept = %conflict.kept, refused = %conflict.refused,
                        "two nodes claim the same addresses"
                    );
                }
                self.conflicts = conflicts;
                (self.compiled, self.saved) = (true, None);
                View {
                    desired: Some(Arc::new(desired)),
                    waiting_for: String::new(),
                }
            }
            // The last known wish goes on to hold: what is missing now must not tear anything down.
            None if self.compiled => View {
                desired: current.desired.clone(),
                waiting_for: self.waiting_for(),
            },
            None => View {
                desired: self
                    .saved
                    .clone()
                    .filter(|saved| self.silent && self.index.may_be(&saved.node_uid)),
                waiting_for: self.waiting_for(),
            },
        };
        let changed = *current != next;
        *current = next;
        changed
    }

    fn waiting_for(&self) -> String {
        let missing = self.index.missing();
        if missing.is_empty() {
            return "a Node object of this name with an InternalIP".into();
        }
        let names: Vec<_> = missing
            .into_iter()
            .map(|source| match source {
                Source::Node => "the Node object",
                Source::Network => "the NodeNetwork object",
                Source::Pools => "PodPools",
                Source::Slices => "NodeSlices",
            })
            .collect();
        format!("{} from the Kubernetes API", names.join(", "))
    }
}

fn own_node(name: &str, node: &KubeNode) -> Option<OwnNode> {
    let uid = node.metadata.uid.as_deref()?;
    let uid = uid
        .parse()
        .inspect_err(|error| tracing::error!(name, %error, "ignoring the Node object"))
        .ok()?;
    let addresses = node
        .status
        .iter()
        .flat_map(|status| status.addresses.iter().flatten());
    let addresses = addresses
        .filter(|address| address.type_ == "InternalIP")
        .filter_map(|address| address.address.parse().ok())
        .collect();
    let capacity = node
        .status
        .as_ref()
        .and_then(|status| status.capacity.as_ref()?.get("pods"));
    let max_pods = capacity.and_then(|pods| pods.0.parse().ok());
    Some(OwnNode {
        uid,
        addresses,
        max_pods,
    })
}

fn grant(name: &str, network: &NodeNetwork) -> Option<Grant> {
    let read = network.spec.uid().and_then(|node_uid| {
        let blocks = network.spec.model_blocks()?;
        let retiring = blocks
            .iter()
            .zip(&network.spec.blocks)
            .filter_map(|(block, said)| said.retiring.then_some(*block))
            .collect();
        Ok(Grant {
            node_uid,
            blocks,
            retiring,
        })
    });
    read.inspect_err(|error| tracing::error!(name, %error, "ignoring an invalid NodeNetwork"))
        .ok()
}

fn nodes(slice: &str, object: &NodeSlice) -> Vec<Node> {
    object
        .spec
        .nodes
        .iter()
        .filter_map(|entry| {
            Node::try_from(entry)
                .inspect_err(
                    |error| tracing::error!(slice, node = entry.name, %error, "ignoring an invalid entry"),
                )
                .ok()
        })
        .collect()
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
