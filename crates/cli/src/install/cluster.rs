//! Requests of installing and taking away, with errors that say what was asked.

use std::time::Duration;

use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PropagationPolicy};
use kube::{Client, ResourceExt};
use tokio::time::Instant;
use weft_model::{UserError, codes};

use super::objects::{describe, resource};
use crate::out;

/// Who owns the fields that `weft install` sets.
const FIELD_MANAGER: &str = "weft-install";

/// A state that passes sooner is not worth a line.
const WORTH_TELLING: Duration = Duration::from_secs(2);

/// How often a state that is waited for is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// What an apply came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Applied {
    Created,
    Changed,
    Unchanged,
}

/// Where the object is served.
pub(super) fn api(client: &Client, object: &DynamicObject) -> Api<DynamicObject> {
    let resource = resource(object);
    match &object.metadata.namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    }
}

/// Server-side apply, which leaves fields of others alone.
pub(super) async fn apply(client: &Client, object: &DynamicObject) -> Result<Applied, UserError> {
    let api = api(client, object);
    let name = object.name_any();
    let failed = |error: kube::Error| refused(&format!("apply {}", describe(object)), &error);
    let before = api.get_metadata_opt(&name).await.map_err(failed)?;
    let after = api
        .patch(&name, &PatchParams::apply(FIELD_MANAGER), &Patch::Apply(object))
        .await
        .map_err(failed)?;
    Ok(match before {
        None => Applied::Created,
        Some(before) if before.metadata.resource_version == after.metadata.resource_version => {
            Applied::Unchanged
        }
        Some(_) => Applied::Changed,
    })
}

/// Deletes an object with what it owns and waits until it is gone. Returns whether there was one.
pub(super) async fn delete(
    client: &Client,
    object: &DynamicObject,
    until: Instant,
) -> Result<bool, UserError> {
    let api = api(client, object);
    let name = object.name_any();
    let what = format!("delete {}", describe(object));
    let params = DeleteParams {
        propagation_policy: Some(PropagationPolicy::Foreground),
        ..DeleteParams::default()
    };
    match api.delete(&name, &params).await {
        Ok(_) => {}
        Err(error) if is_absent(&error) => return Ok(false),
        Err(error) => return Err(refused(&what, &error)),
    }
    let shown = describe(object);
    wait(until, async || match api.get_metadata_opt(&name).await {
        Ok(None) => Ok(None),
        Ok(Some(_)) => Ok(Some(format!("{shown} is going"))),
        Err(error) => Err(refused(&format!("look at {shown}"), &error)),
    })
    .await?;
    Ok(true)
}

/// Looks until there is nothing left to wait for, and tells states that last. What can pass, such as an API server that
/// does not answer, is waited out.
///
/// # Errors
/// The time is over: [`codes::ROLLOUT`] with the last state, or the last error.
pub(super) async fn wait(
    until: Instant,
    mut look: impl AsyncFnMut() -> Result<Option<String>, UserError>,
) -> Result<(), UserError> {
    let mut told = false;
    let mut last = (String::new(), Instant::now());
    loop {
        let state = match look().await {
            Ok(None) => return Ok(()),
            Ok(Some(state)) => state,
            Err(error) if error.code() == codes::API_UNREACHABLE && Instant::now() < until => {
                error.message().to_owned()
            }
            Err(error) => return Err(error),
        };
        if Instant::now() >= until {
            return Err(UserError::new(
                codes::ROLLOUT,
                state,
                "look at it, then repeat the command; it goes on from there",
            ));
        }
        if last.0 != state {
            last = (state, Instant::now());
            told = false;
        }
        if !told && last.1.elapsed() >= WORTH_TELLING {
            out::note(format!("  waiting: {}", last.0));
            told = true;
        }
        tokio::time::sleep_until(until.min(Instant::now() + LOOK_AGAIN)).await;
    }
}

/// All objects of a typed list; an API that does not know the type has none.
pub(super) async fn list<K>(api: Api<K>, what: &str, params: &ListParams) -> Result<Vec<K>, UserError>
where
    K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    match api.list(params).await {
        Ok(list) => Ok(list.items),
        Err(error) if is_absent(&error) => Ok(Vec::new()),
        Err(error) => Err(refused(&format!("list {what}"), &error)),
    }
}

/// Whether the object, or its type, isn't there.
pub(super) fn is_absent(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// An error for people.
pub(super) fn refused(what: &str, error: &kube::Error) -> UserError {
    match error {
        kube::Error::Api(status) if status.code == 403 => UserError::new(
            codes::API_FORBIDDEN,
            format!("{what}: {}", status.message),
            "use an account that may administer the cluster",
        ),
        kube::Error::Api(status) if status.code == 409 => UserError::new(
            codes::API_REJECTED,
            format!("{what}: {}", status.message),
            "change it with the tool that owns those fields, such as helm upgrade",
        ),
        kube::Error::Api(status) => UserError::new(
            codes::API_REJECTED,
            format!("{what}: {} ({})", status.message, status.code),
            "change what the message names",
        ),
        error => UserError::new(
            codes::API_UNREACHABLE,
            format!("{what}: {}", weft_api::root_cause(error)),
            "kubectl cluster-info",
        ),
    }
}
