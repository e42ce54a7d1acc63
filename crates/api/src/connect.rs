//! How to reach a cluster's API.

use std::error::Error;
use std::path::Path;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use weft_model::{UserError, codes};

/// The configuration that `kubeconfig` and `context` name. Without either: that of KUBECONFIG, `~/.kube/config`, or the
/// pod this runs in.
///
/// # Errors
/// [`codes::KUBECONFIG`] if there is no such file or context, or it can't be used.
pub async fn config(kubeconfig: Option<&Path>, context: Option<&str>) -> Result<Config, UserError> {
    if kubeconfig.is_none() && context.is_none() {
        return Config::infer().await.map_err(|_| {
            UserError::new(
                codes::KUBECONFIG,
                "there is neither a kubeconfig nor a pod's service account to tell which cluster is meant",
                "name it with --kubeconfig FILE",
            )
        });
    }
    let found = match kubeconfig {
        Some(path) => Kubeconfig::read_from(path),
        None => Kubeconfig::read(),
    };
    let unusable = |error: &dyn Error| {
        let (shown, next) = match kubeconfig {
            Some(path) => (
                format!("kubeconfig {}", path.display()),
                format!("kubectl --kubeconfig {} config get-contexts", path.display()),
            ),
            None => ("kubeconfig".to_owned(), "kubectl config get-contexts".to_owned()),
        };
        UserError::new(codes::KUBECONFIG, format!("{shown}: {}", root_cause(error)), next)
    };
    let options = KubeConfigOptions {
        context: context.map(str::to_owned),
        ..KubeConfigOptions::default()
    };
    Config::from_custom_kubeconfig(found.map_err(|error| unusable(&error))?, &options)
        .await
        .map_err(|error| unusable(&error))
}

/// A client for a configuration.
///
/// # Errors
/// [`codes::KUBECONFIG`] if its certificates or keys can't be used.
pub fn client(config: Config) -> Result<Client, UserError> {
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
pub fn root_cause(error: &dyn Error) -> String {
    let mut root = error;
    while let Some(cause) = root.source() {
        root = cause;
    }
    root.to_string()
}
