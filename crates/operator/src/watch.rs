//! The loop: watch events into the index, its plan into writes, their answers into the index.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, BoxStream, Stream, StreamExt, select_all};
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::jiff::Timestamp;
use kube::runtime::WatchStreamExt;
use kube::runtime::utils::{Backoff, ResetTimerBackoff};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep_until, timeout_at};
use weft_api::{NodeNetwork, NodeSlice, PodPool};

use crate::index::{Action, Index, Source};
use crate::lease::Leadership;
use crate::metrics::Metrics;
use crate::read::{
    AgentPod, SlimNode, set_agent, set_network, set_node, set_pool, set_service_cidr, set_slice,
};
use crate::write::{Answer, Write, WriteError, Writer};

/// Events that are there at once are taken at once.
const BURST: usize = 4096;

/// Between two bursts of events: a plan looks at every node, and events rarely come alone.
const PACE: Duration = Duration::from_millis(100);

/// Statuses written before events are looked at again: there may be one for every node.
const STATUSES: usize = 256;

/// The first wait after a write that failed; doubled up to [`MAX_RETRY`].
const MIN_RETRY: Duration = Duration::from_millis(500);
const MAX_RETRY: Duration = Duration::from_secs(30);

/// Labels of agents' pods.
const AGENTS: &str = "app.kubernetes.io/name=weft,app.kubernetes.io/component=agent";

/// The longest wait after a watch that failed: new nodes wait for the operator, and there is one of it.
const MAX_WATCH_RETRY: Duration = Duration::from_secs(5);

enum Update {
    Node(Event<SlimNode>),
    Network(Event<NodeNetwork>),
    Pool(Event<PodPool>),
    Slice(Event<NodeSlice>),
    ServiceCidr(Event<ServiceCIDR>),
    Agent(Event<AgentPod>),
    /// The watch of a source failed.
    Failed(Source, watcher::Error),
}

/// Runs as long as the operator leads, and ends only when dropped. With `agents`, agents are pods of that namespace.
pub(crate) async fn run(
    client: Client,
    agents: Option<&str>,
    mut index: Index,
    identity: &str,
    leadership: Arc<Leadership>,
    metrics: Arc<Metrics>,
) {
    let agents = match agents {
        Some(namespace) => {
            index.agents_are_pods();
            let config = watcher::Config::default().labels(AGENTS);
            let pods = Api::namespaced(client.clone(), namespace);
            updates(pods, config, Source::Agents, Update::Agent)
        }
        None => {
            index.no_agent_pods();
            stream::pending().boxed()
        }
    };
    let all = watcher::Config::default;
    let updates = select_all([
        updates(Api::all(client.clone()), all(), Source::Nodes, Update::Node),
        updates(Api::all(client.clone()), all(), Source::Networks, Update::Network),
        updates(Api::all(client.clone()), all(), Source::Pools, Update::Pool),
        updates(Api::all(client.clone()), all(), Source::Slices, Update::Slice),
        updates(
            Api::all(client.clone()),
            all(),
            Source::ServiceCidrs,
            Update::ServiceCidr,
        ),
        agents,
    ]);
    let mut bursts = pin!(bursts(updates, PACE));
    let writer = Writer::new(client, identity, Arc::clone(&leadership), Arc::clone(&metrics));
    let mut state = State::new(index, writer, leadership, metrics);
    loop {
        let wake = state.wake();
        let changed = tokio::select! {
            burst = bursts.next() => match burst {
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

/// The next wait after a watch that failed.
struct WatchRetry(Duration);

struct State {
    index: Index,
    writer: Writer,
    leadership: Arc<Leadership>,
    metrics: Arc<Metrics>,
    /// Names met since a relist began.
    seen: BTreeMap<Source, BTreeSet<String>>,
    /// The newest version applied of each object. Answers to writes overtake
    /// the watch: what it brings afterwards may be older.
    versions: BTreeMap<(Source, String), u64>,
    started: Instant,
    wake: Option<Instant>,
    retry: Duration,
}

// === impl WatchRetry ===

impl Iterator for WatchRetry {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let wait = self.0;
        self.0 = (wait * 2).min(MAX_WATCH_RETRY);
        Some(wait)
    }
}

impl Backoff for WatchRetry {
    fn reset(&mut self) {
        self.0 = MIN_RETRY;
    }
}

// === impl State ===

impl State {
    fn new(index: Index, writer: Writer, leadership: Arc<Leadership>, metrics: Arc<Metrics>) -> Self {
        Self {
            index,
            writer,
            leadership,
            metrics,
            seen: BTreeMap::new(),
            versions: BTreeMap::new(),
            started: Instant::now(),
            wake: None,
            retry: MIN_RETRY,
        }
    }

    fn wake(&self) -> Option<Instant> {
        let counts = self.index.counts_due().map(|at| self.started + at);
        self.wake.into_iter().chain(counts).min()
    }

    /// Writes until there is nothing left to write.
    async fn work(&mut self) {
        loop {
            let started = Instant::now();
            let plan = self.index.plan(self.started.elapsed(), Timestamp::now());
            if !self.index.complete() {
                return;
            }
            self.metrics.planned(started.elapsed());
            self.metrics.pools(self.index.figures());
            self.wake = plan.again_at.map(|at| self.started + at);
            for conflict in &plan.new_conflicts {
                tracing::error!("two nodes claim the same addresses: {conflict}");
            }
            if let Err(error) = self.leadership.note(plan.note).await {
                tracing::warn!(%error, "cannot note what is about to be granted, so nothing is written");
                self.try_again();
                return;
            }
            let acted = !plan.actions.is_empty();
            let mut failed = self.write(plan.actions).await;
            if acted && failed.is_empty() {
                continue;
            }
            let mut statuses = plan.statuses;
            let more = statuses.len() > STATUSES;
            statuses.truncate(STATUSES);
            let told = !statuses.is_empty();
            failed.extend(self.write(statuses).await);
            let Some((action, error)) = failed
                .iter()
                .find(|(_, error)| !error.is_conflict())
                .or(failed.first())
            else {
                self.retry = MIN_RETRY;
                if more {
                    self.wake = Some(Instant::now());
                } else if told {
                    continue;
                }
                return;
            };
            if error.is_conflict() {
                tracing::debug!(failed = failed.len(), first = ?action, %error, "somebody else wrote meanwhile");
                self.retry = MIN_RETRY;
            } else {
                tracing::warn!(failed = failed.len(), first = ?action, %error, "writes failed, trying again");
            }
            self.try_again();
            return;
        }
    }

    /// Does `actions`; returns those that failed.
    async fn write(&mut self, actions: Vec<Action>) -> Vec<(Action, WriteError)> {
        let writes = actions.into_iter().map(|action| {
            let version = self.version_of(&action);
            Write { action, version }
        });
        let answers = self.writer.write(writes.collect()).await;
        let mut failed = Vec::new();
        for (write, answer) in answers {
            match answer {
                Ok(answer) => self.feed_back(&write.action, answer),
                Err(error) => failed.push((write.action, error)),
            }
        }
        failed
    }

    fn try_again(&mut self) {
        let retry = Instant::now() + self.retry;
        self.wake = Some(self.wake.map_or(retry, |wake| wake.min(retry)));
        self.retry = (self.retry * 2).min(MAX_RETRY);
    }

    /// The version of the object that an action was planned with.
    fn version_of(&self, action: &Action) -> Option<String> {
        let object = match action {
            Action::SetBlocks { name, .. } => (Source::Networks, name.to_string()),
            Action::SetTaint { name, .. } => (Source::Nodes, name.to_string()),
            Action::Slice(change) => (Source::Slices, change.name().to_owned()),
            Action::CreateNetwork { .. }
            | Action::DeleteNetwork { .. }
            | Action::SetAllocation { .. }
            | Action::SetPoolStatus { .. }
            | Action::SetNodeCondition { .. } => return None,
        };
        self.versions.get(&object).map(u64::to_string)
    }

    fn feed_back(&mut self, action: &Action, answer: Answer) {
        match answer {
            Answer::Network(network) => {
                self.event(Source::Networks, Event::Apply(network), set_network);
            }
            Answer::Pool(pool) => {
                self.index
                    .status_written(&pool.name_any(), self.started.elapsed());
                self.event(Source::Pools, Event::Apply(pool), set_pool);
            }
            Answer::Slice(slice) => {
                self.event(Source::Slices, Event::Apply(slice), set_slice);
            }
            Answer::Node(node) => {
                self.event(Source::Nodes, Event::Apply(node), set_node);
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
            Update::ServiceCidr(event) => self.event(Source::ServiceCidrs, event, set_service_cidr),
            Update::Agent(event) => self.event(Source::Agents, event, set_agent),
            Update::Failed(source, error) => self.failed(source, &error),
        }
    }

    /// Clusters before 1.33 have no ServiceCIDR, and some let no operator read it: those of the command line have to do.
    /// Without the agents' pods it is their own words that count: no reason to keep blocks from nodes.
    fn failed(&mut self, source: Source, error: &watcher::Error) -> bool {
        self.metrics.watch_failed(source);
        let kind = source.kind();
        let absent = match error {
            watcher::Error::InitialListFailed(kube::Error::Api(status)) => matches!(status.code, 403 | 404),
            _ => false,
        };
        match source {
            Source::ServiceCidrs if absent => {
                tracing::debug!(kind, %error, "going on without");
                self.index.listed(source);
                return true;
            }
            Source::Agents if absent => {
                tracing::warn!(kind, %error, "going on without the agents' pods");
                self.index.no_agent_pods();
                return true;
            }
            _ => {}
        }
        tracing::warn!(kind, %error, "watch failed, trying again");
        false
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
                self.metrics.watch_listed(source);
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

/// The first update comes at once, and what comes within `pace` of a burst before comes in one.
fn bursts<T>(updates: impl Stream<Item = T> + Unpin, pace: Duration) -> impl Stream<Item = Vec<T>> {
    let chunks = updates.ready_chunks(BURST);
    stream::unfold((chunks, Instant::now()), move |(mut chunks, until)| async move {
        let mut burst = chunks.next().await?;
        while Instant::now() < until
            && let Ok(Some(more)) = timeout_at(until, chunks.next()).await
        {
            burst.extend(more);
        }
        Some((burst, (chunks, Instant::now() + pace)))
    })
}

fn updates<K>(
    api: Api<K>,
    config: watcher::Config,
    source: Source,
    wrap: impl Fn(Event<K>) -> Update + Send + 'static,
) -> BoxStream<'static, Update>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    watcher(api, config)
        .backoff(ResetTimerBackoff::new(WatchRetry(MIN_RETRY), 2 * MAX_WATCH_RETRY))
        .map(move |event| match event {
            Ok(event) => wrap(event),
            Err(error) => Update::Failed(source, error),
        })
        .boxed()
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
