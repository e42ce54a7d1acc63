//! Commands about a cluster's pod network, a lab's or any other's.

pub(crate) mod audit;
pub(crate) mod ip;
pub(crate) mod status;

use std::path::PathBuf;

use clap::Args;
use weft_inspect::Snapshot;
use weft_model::{UserError, codes};

/// Which cluster is meant.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct ClusterArgs {
    /// The lab cluster of this name
    #[arg(long, help_heading = "Cluster", value_name = "NAME", conflicts_with_all = ["kubeconfig", "context"])]
    pub lab: Option<String>,
    /// The cluster this kubeconfig leads to [default: KUBECONFIG, or ~/.kube/config]
    #[arg(long, help_heading = "Cluster", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig [default: its current one]
    #[arg(long, help_heading = "Cluster", value_name = "NAME")]
    pub context: Option<String>,
}

// === impl ClusterArgs ===

impl ClusterArgs {
    /// A client of the cluster's API. Its type is the library's own; nothing here looks into it.
    async fn client(&self) -> Result<weft_inspect::Client, UserError> {
        match &self.lab {
            Some(name) => weft_lab::exec::client(name),
            None => weft_inspect::client(self.kubeconfig.as_deref(), self.context.as_deref())
                .await
                .map_err(|error| self.named(error)),
        }
    }

    async fn snapshot(&self) -> Result<Snapshot, UserError> {
        Snapshot::read(&self.client().await?)
            .await
            .map_err(|error| self.in_reach(error))
    }

    /// Where nothing says which cluster is meant, a lab of this machine may be.
    fn named(&self, error: UserError) -> UserError {
        match weft_lab::state::cluster_names().first() {
            Some(name) if self.flags().is_empty() => UserError::new(
                error.code(),
                error.message(),
                format!("name a lab cluster such as --lab {name}, or a kubeconfig with --kubeconfig FILE"),
            ),
            _ => error,
        }
    }

    /// Lab clusters have a command of their own that says why they don't answer.
    fn in_reach(&self, error: UserError) -> UserError {
        match &self.lab {
            Some(name) if error.code() == codes::API_UNREACHABLE => UserError::new(
                error.code(),
                format!("cluster {name}: {}", error.message()),
                format!("weft lab status {name}"),
            ),
            _ => error,
        }
    }

    /// `kubectl …` for this cluster.
    fn kubectl(&self, words: &str) -> String {
        match &self.lab {
            Some(name) => format!("KUBECONFIG=$(weft lab kubeconfig {name}) kubectl {words}"),
            None => format!("kubectl{} {words}", self.flags()),
        }
    }

    /// The flags that name this cluster, with a space before each.
    fn flags(&self) -> String {
        let lab = self.lab.as_ref().map(|name| format!(" --lab {name}"));
        let file = self
            .kubeconfig
            .as_ref()
            .map(|path| format!(" --kubeconfig {}", path.display()));
        let context = self.context.as_ref().map(|name| format!(" --context {name}"));
        [lab, file, context].into_iter().flatten().collect()
    }
}
