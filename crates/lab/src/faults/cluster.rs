//! What happens to the Kubernetes API and to what is in it.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Node;
use kube::api::{DeleteParams, ListParams};
use kube::{Api, ResourceExt};
use weft_api::NodeSlice;
use weft_model::{UserError, codes};

use crate::daemon::{Daemon, api_error};
use crate::machine::Machine;

/// Which resource version the API had at which moment, a second apart.
#[derive(Debug, Default)]
pub(crate) struct Past(Mutex<VecDeque<(Instant, u64)>>);

// === impl Past ===

impl Past {
    /// How far back it reaches, in seconds.
    pub(super) const SECONDS: u32 = 300;

    /// Between two notes.
    pub(crate) const PERIOD: Duration = Duration::from_secs(1);

    /// Notes the present.
    pub(crate) fn note(&self, revision: u64) {
        let mut past = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        past.push_back((Instant::now(), revision));
        if past.len() > Self::SECONDS as usize + 1 {
            past.pop_front();
        }
    }

    /// The resource version that long ago, and how long exactly; the oldest known where that is not so long ago.
    fn ago(&self, seconds: u32) -> Option<(u64, Duration)> {
        let past = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = Duration::from_secs(seconds.into());
        let found = past
            .iter()
            .rev()
            .find(|(at, _)| at.elapsed() >= wanted)
            .or(past.front());
        found.map(|(at, revision)| (*revision, at.elapsed()))
    }

    /// Forgets what came after a moment that has come back.
    fn forget(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

// === impl Daemon ===

impl Daemon {
    /// Has the API answer, or not.
    pub(super) fn set_api_up(&self, up: bool) {
        self.api.faults().refuse_requests(!up);
        if !up {
            self.api.faults().cut_watches();
        }
    }

    /// Restores the API to what it was `seconds` ago. What surrounds Kubernetes does what it would do then: the
    /// cloud's node controller removes Nodes of machines that are gone, and kubelets register theirs again.
    pub(super) async fn rewind(self: &Arc<Self>, seconds: u32) -> Result<String, UserError> {
        let name = &self.handle.name;
        let Some((revision, ago)) = self.past.ago(seconds) else {
            return Err(UserError::new(
                codes::LAB_STATE,
                format!("cluster {name} is too young to have a past"),
                format!("weft lab status {name}"),
            ));
        };
        self.api.rewind(revision).map_err(|error| {
            UserError::new(
                codes::LAB_STATE,
                format!("the API can't go back {seconds} s, to resource version {revision}: {error}"),
                "use a smaller --value",
            )
        })?;
        self.past.forget();
        let failed = |error: kube::Error| api_error("putting the Nodes right", &error);
        let nodes: Api<Node> = Api::all(self.handle.client.clone());
        let known = nodes.list(&ListParams::default()).await.map_err(failed)?;
        let known: BTreeSet<String> = known.iter().map(ResourceExt::name_any).collect();
        let state = self.state();
        let registration = self.registration();
        let gone = known.iter().filter(|node| state.node(node).is_err());
        for node in gone {
            registration.delete(node).await?;
        }
        for node in state.nodes.iter().filter(|node| !known.contains(&node.name)) {
            registration
                .register(&Machine::new(&self.dir, node), state.config.max_pods)
                .await?;
        }
        Ok(format!(
            "the Kubernetes API is what it was {:.1} s ago",
            ago.as_secs_f64()
        ))
    }

    pub(super) async fn delete_slices(&self) -> Result<String, UserError> {
        let slices: Api<NodeSlice> = Api::all(self.handle.client.clone());
        let failed = |error: kube::Error| api_error("deleting NodeSlices", &error);
        let found = slices.list(&ListParams::default()).await.map_err(failed)?;
        for slice in &found {
            match slices.delete(&slice.name_any(), &DeleteParams::default()).await {
                Err(kube::Error::Api(status)) if status.is_not_found() => {}
                outcome => drop(outcome.map_err(failed)?),
            }
        }
        Ok(format!("{} NodeSlices deleted", found.items.len()))
    }
}
