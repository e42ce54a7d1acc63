//! Clients of real clusters.

use std::path::Path;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use weft_model::{UserError, codes};

/// How long an API server may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long it may be silent in the middle of an answer.
const READ_TIMEOUT: Duration = Duration::from_secs(20);

/// A client of the cluster that `kubeconfig` and `context` name. Without either: of KUBECONFIG, `~/.kube/config`, or
/// the pod this runs in.
///
/// # Errors
/// [`codes::KUBECONFIG`] if there is no such file or context, or it can't be used.
pub async fn client(kubeconfig: Option<&Path>, context: Option<&str>) -> Result<Client, UserError> {
    let mut config = match (kubeconfig, context) {
        (None, None) => Config::infer().await.map_err(|_| {
            UserError::new(
                codes::KUBECONFIG,
                "there is neither a kubeconfig nor a pod's service account to tell which cluster is meant",
                "name it with --kubeconfig FILE, or a lab cluster with --lab NAME",
            )
        })?,
        _ => {
            let found = match kubeconfig {
                Some(path) => Kubeconfig::read_from(path),
                None => Kubeconfig::read(),
            };
            let shown = kubeconfig.map_or("kubeconfig".to_owned(), |path| {
                format!("kubeconfig {}", path.display())
            });
            let unusable = |error: &dyn std::error::Error| {
                let next = match kubeconfig {
                    Some(path) => format!("kubectl --kubeconfig {} config get-contexts", path.display()),
                    None => "kubectl config get-contexts".to_owned(),
                };
                UserError::new(codes::KUBECONFIG, format!("{shown}: {}", root_cause(error)), next)
            };
            let options = KubeConfigOptions {
                context: context.map(str::to_owned),
                ..KubeConfigOptions::default()
            };
            Config::from_custom_kubeconfig(found.map_err(|error| unusable(&error))?, &options)
                .await
                .map_err(|error| unusable(&error))?
        }
    };
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(READ_TIMEOUT);
    let url = config.cluster_url.to_string();
    Client::try_from(config).map_err(|error| {
        UserError::new(
            codes::KUBECONFIG,
            format!("{url}: {}", root_cause(&error)),
            "kubectl config view --minify",
        )
    })
}

/// What is at the bottom of an error: those above it say where, and the caller knows that.
pub(crate) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut root = error;
    while let Some(cause) = root.source() {
        root = cause;
    }
    root.to_string()
}
