//! A watch of one kind, reduced to what its reader wants to keep.

use std::fmt::Debug;

use futures::StreamExt;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

/// One change of a watched collection.
#[derive(Debug)]
pub enum Change<F> {
    /// An object was created or modified.
    Applied(F),
    /// An object was deleted.
    Deleted(F),
    /// The complete collection, at the start and whenever the watch had to start anew.
    Listed(Vec<F>),
}

/// Watches `api` until `stop`, handing each object to `extract` at once and what comes of it to `sink`.
///
/// A broken watch is taken up again with a growing delay, for ever.
pub async fn feed<K, F>(
    api: Api<K>,
    config: watcher::Config,
    stop: CancellationToken,
    extract: impl Fn(K) -> F,
    mut sink: impl FnMut(Change<F>),
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut events = std::pin::pin!(watcher(api, config).default_backoff());
    let mut listing = Vec::new();
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => return,
            event = events.next() => event,
        };
        match event {
            Some(Ok(watcher::Event::Apply(object))) => sink(Change::Applied(extract(object))),
            Some(Ok(watcher::Event::Delete(object))) => sink(Change::Deleted(extract(object))),
            Some(Ok(watcher::Event::Init)) => listing.clear(),
            Some(Ok(watcher::Event::InitApply(object))) => listing.push(extract(object)),
            Some(Ok(watcher::Event::InitDone)) => sink(Change::Listed(std::mem::take(&mut listing))),
            Some(Err(error)) => {
                tracing::debug!(kind = std::any::type_name::<K>(), %error, "watch broke, starting anew");
            }
            None => return,
        }
    }
}
