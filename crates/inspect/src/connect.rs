//! Clients for commands that somebody waits for.

use std::path::Path;
use std::time::Duration;

use kube::Client;
use weft_model::UserError;

/// How long an API server may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long it may be silent in the middle of an answer.
const READ_TIMEOUT: Duration = Duration::from_secs(20);

/// A client of the cluster that `kubeconfig` and `context` name; see [`weft_api::config`].
///
/// # Errors
/// As for [`weft_api::config`] and [`weft_api::client`].
pub async fn client(kubeconfig: Option<&Path>, context: Option<&str>) -> Result<Client, UserError> {
    let mut config = weft_api::config(kubeconfig, context).await?;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(READ_TIMEOUT);
    weft_api::client(config)
}
