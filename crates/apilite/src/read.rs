//! Get and list.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use crate::core::Core;
use crate::error::ApiError;
use crate::registry::{Origin, Resource};
use crate::route::{Query, Target};
use crate::selectable;
use crate::selector::{FieldSelector, LabelSelector};
use crate::store::{Key, Page, Range, RevisionError, Stored};

/// Which objects of a resource a list, a watch or a deletecollection means.
#[derive(Debug)]
pub(crate) struct Selection {
    pub(crate) resource: Arc<Resource>,
    pub(crate) namespace: String,
    labels: LabelSelector,
    fields: FieldSelector,
}

/// `resourceVersion` with `resourceVersionMatch`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Wanted {
    Newest,
    /// Not older than this; 0 accepts anything.
    AtLeast(u64),
    Exactly(u64),
}

pub(crate) struct Listing {
    pub(crate) page: Page,
    pub(crate) continuation: Option<String>,
    /// Known only where nothing was filtered out.
    pub(crate) remaining: Option<usize>,
}

/// How long a client may wait for a revision that hasn't happened, as in the real watch cache.
const FRESHNESS_WAIT: Duration = Duration::from_secs(3);

const STALE_CONTINUE: &str = "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.";

// === impl Selection ===

impl Selection {
    pub(crate) fn parse(target: &Target, query: &Query) -> Result<Self, ApiError> {
        let labels = LabelSelector::parse(query.get("labelSelector").unwrap_or_default())?;
        let fields = FieldSelector::parse(query.get("fieldSelector").unwrap_or_default())?;
        let resource = Arc::clone(&target.resource);
        if let Some(field) = selectable::unknown_field(&resource.shelf, resource.custom_fields(), &fields) {
            return Err(ApiError::bad_request(format!(
                "field label not supported: {field}"
            )));
        }
        Ok(Self {
            resource,
            namespace: target.namespace.clone(),
            labels,
            fields,
        })
    }

    /// The selection that is one object, as a watch on its path means it.
    pub(crate) fn only(mut self, name: &str) -> Result<Self, ApiError> {
        self.fields = FieldSelector::parse(&format!("metadata.name={name}"))?;
        Ok(self)
    }

    pub(crate) fn matches(&self, stored: &Stored) -> bool {
        (self.namespace.is_empty() || *stored.key.namespace == *self.namespace)
            && (self.labels.is_empty() || self.labels.matches(|key| stored.label(key)))
            && selectable::matches(
                &self.resource.shelf,
                self.resource.custom_fields(),
                &self.fields,
                stored,
            )
    }

    fn selects_everything(&self) -> bool {
        self.labels.is_empty() && self.fields.terms().is_empty()
    }
}

// === impl Wanted ===

impl Wanted {
    pub(crate) fn parse(query: &Query) -> Result<Self, ApiError> {
        let revision = query.get("resourceVersion").map(parse_revision).transpose()?;
        match (query.get("resourceVersionMatch"), revision) {
            (None, None) => Ok(Self::Newest),
            (None | Some("NotOlderThan"), Some(revision)) => Ok(Self::AtLeast(revision)),
            (Some("Exact"), Some(0)) => Err(list_options_error(
                "resourceVersionMatch: Forbidden: resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
                "resourceVersionMatch",
            )),
            (Some("Exact"), Some(revision)) => Ok(Self::Exactly(revision)),
            (Some("Exact" | "NotOlderThan"), None) if query.flag("sendInitialEvents") => Ok(Self::Newest),
            (Some("Exact" | "NotOlderThan"), None) => Err(list_options_error(
                "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided",
                "resourceVersionMatch",
            )),
            (Some(other), _) => Err(list_options_error(
                &format!(
                    "resourceVersionMatch: Unsupported value: {other:?}: supported values: \"Exact\", \"NotOlderThan\", \"\""
                ),
                "resourceVersionMatch",
            )),
        }
    }
}

pub(crate) fn list_options_error(what: &str, field: &str) -> ApiError {
    let message = format!("ListOptions.meta.k8s.io \"\" is invalid: {what}");
    let error = ApiError::new(http::StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message);
    let cause = what.split_once(": ").map_or(what, |(_, cause)| cause);
    error.with_cause("FieldValueForbidden", cause, field)
}

pub(crate) fn parse_revision(text: &str) -> Result<u64, ApiError> {
    text.parse().map_err(|_| {
        ApiError::bad_request(format!(
            "resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"
        ))
    })
}

// === impl Core ===

impl Core {
    pub(crate) fn get(&self, target: &Target) -> Result<Arc<Stored>, ApiError> {
        let name = target.name.as_deref().unwrap_or_default();
        let key = Key::new(&target.namespace, name);
        self.store
            .get(&target.resource.shelf, &key)
            .ok_or_else(|| ApiError::not_found(&target.resource, name))
    }

    /// Waits until the store has reached a revision, for a bounded time.
    pub(crate) async fn wait_for(&self, revision: u64) -> Result<(), ApiError> {
        let mut changes = self.store.subscribe_all();
        let reached = changes.wait_for(|current| *current >= revision);
        match tokio::time::timeout(FRESHNESS_WAIT, reached).await {
            Ok(_) => Ok(()),
            Err(_) => Err(ApiError::revision_too_large(revision, self.store.revision())),
        }
    }

    pub(crate) async fn list(&self, selection: &Selection, query: &Query) -> Result<Listing, ApiError> {
        let limit = query.number::<usize>("limit")?.filter(|limit| *limit > 0);
        let token = query.get("continue").map(Continuation::parse).transpose()?;
        let wanted = Wanted::parse(query)?;
        let at = match (&token, wanted) {
            (Some(_), Wanted::AtLeast(1..) | Wanted::Exactly(_)) => {
                return Err(ApiError::bad_request(
                    "specifying resource version is not allowed when using continue",
                ));
            }
            (Some(token), _) => token.revision,
            (None, Wanted::Exactly(revision)) => Some(revision),
            (None, Wanted::AtLeast(revision)) => {
                self.wait_for(revision).await?;
                None
            }
            (None, Wanted::Newest) => None,
        };
        if let Some(revision) = at {
            self.wait_for(revision).await?;
        }
        let range = Range {
            namespace: &selection.namespace,
            after: token.as_ref().map(|token| &token.after),
            limit,
            at,
        };
        let page = self
            .store
            .list(&selection.resource.shelf, &range, |stored| {
                selection.matches(stored)
            })
            .map_err(|error| match error {
                RevisionError::Compacted { .. } if token.is_some() => ApiError::expired(STALE_CONTINUE),
                RevisionError::Compacted { oldest } => ApiError::expired(format!(
                    "The resourceVersion for the provided list is too old. (oldest available: {oldest})"
                )),
                RevisionError::Future { current } => {
                    ApiError::revision_too_large(at.unwrap_or_default(), current)
                }
            })?;
        let continuation = page.next.as_ref().map(|next| {
            let revision = if token.as_ref().is_some_and(|token| token.revision.is_none()) {
                None
            } else {
                Some(page.revision)
            };
            Continuation {
                revision,
                after: next.clone(),
            }
            .to_string()
        });
        let remaining = (continuation.is_some() && selection.selects_everything()).then_some(page.remaining);
        Ok(Listing {
            page,
            continuation,
            remaining,
        })
    }
}

/// Where a chunked list goes on. The token is opaque to clients.
struct Continuation {
    /// None goes on with the newest state, inconsistently.
    revision: Option<u64>,
    after: Key,
}

// === impl Continuation ===

impl Continuation {
    fn parse(token: &str) -> Result<Self, ApiError> {
        let parse = || {
            let mut parts = token.splitn(3, '/');
            let revision = parts.next()?;
            let revision = if revision == "-1" {
                None
            } else {
                Some(revision.parse().ok()?)
            };
            Some(Self {
                revision,
                after: Key::new(parts.next()?, parts.next()?),
            })
        };
        parse().ok_or_else(|| {
            ApiError::bad_request("continue key is not valid: the token was not made by this server")
        })
    }
}

impl std::fmt::Display for Continuation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.revision {
            Some(revision) => write!(f, "{revision}/{}/{}", self.after.namespace, self.after.name),
            None => write!(f, "-1/{}/{}", self.after.namespace, self.after.name),
        }
    }
}

/// A 410 for a continue token says how to go on without consistency.
pub(crate) fn status_metadata(error: &ApiError, query: &Query) -> Value {
    let token = query
        .get("continue")
        .and_then(|token| Continuation::parse(token).ok());
    match token {
        Some(token) if error.reason == "Expired" => {
            json!({ "continue": Continuation { revision: None, ..token }.to_string() })
        }
        _ => json!({}),
    }
}

/// An object as a version of its resource shows it.
pub(crate) fn view(resource: &Resource, stored: &Stored) -> Bytes {
    if resource.shows_as_stored() {
        return stored.json.clone();
    }
    serde_json::to_vec(&view_value(resource, stored))
        .expect("a Value serializes")
        .into()
}

pub(crate) fn view_value(resource: &Resource, stored: &Stored) -> Value {
    let mut object = stored.value();
    if !resource.shows_as_stored() {
        from_storage(resource, &mut object);
    }
    object
}

/// Storage form → the form of the requested version.
pub(crate) fn from_storage(resource: &Resource, object: &mut Value) {
    if let Origin::BuiltIn(_) = resource.origin
        && resource.group == "events.k8s.io"
    {
        crate::events::to_events_api(object);
    }
    object["apiVersion"] = Value::from(resource.api_version());
}

/// The form of the requested version → storage form.
pub(crate) fn to_storage(resource: &Resource, object: &mut Value) {
    match &resource.origin {
        Origin::BuiltIn(_) if resource.group == "events.k8s.io" => crate::events::from_events_api(object),
        Origin::BuiltIn(_) => {}
        Origin::Custom(custom) => {
            let version = crate::registry::api_version(&resource.group, &custom.storage_version);
            object["apiVersion"] = Value::from(version);
        }
    }
}

/// `PartialObjectMetadata` of an object.
pub(crate) fn metadata_only(object: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": object["metadata"],
    })
}
