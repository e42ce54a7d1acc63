//! Delete and deletecollection: grace periods, finalizers, propagation policies, preconditions.

use http::StatusCode;
use serde_json::{Value, json};

use crate::core::Core;
use crate::error::{ApiError, Details};
use crate::read::{self, Selection};
use crate::registry::Resource;
use crate::route::{Query, Target};
use crate::store::{Expect, Range};
use crate::strategy;
use crate::write::Written;

/// `metav1.DeleteOptions`, from the body and the query.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct DeleteOptions {
    /// Seconds.
    pub(crate) grace: Option<i64>,
    pub(crate) propagation: Option<Propagation>,
    pub(crate) uid: Option<String>,
    pub(crate) revision: Option<String>,
    pub(crate) dry_run: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Propagation {
    Orphan,
    Background,
    Foreground,
}

pub(crate) const ORPHAN_FINALIZER: &str = "orphan";
pub(crate) const FOREGROUND_FINALIZER: &str = "foregroundDeletion";

const RETRIES: usize = 16;

// === impl DeleteOptions ===

impl DeleteOptions {
    pub(crate) fn parse(body: Option<&Value>, query: &Query) -> Result<Self, ApiError> {
        let none = Value::Null;
        let body = body.unwrap_or(&none);
        let policy = body["propagationPolicy"]
            .as_str()
            .or_else(|| query.get("propagationPolicy"));
        let orphan = body["orphanDependents"].as_bool().or_else(|| {
            query
                .has("orphanDependents")
                .then(|| query.flag("orphanDependents"))
        });
        let propagation = match (policy, orphan) {
            (Some("Orphan"), _) | (None, Some(true)) => Some(Propagation::Orphan),
            (Some("Background"), _) | (None, Some(false)) => Some(Propagation::Background),
            (Some("Foreground"), _) => Some(Propagation::Foreground),
            (None, None) => None,
            (Some(other), _) => {
                return Err(ApiError::new(
                    StatusCode::UNPROCESSABLE_ENTITY,
                    "Invalid",
                    format!(
                        "DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy: Unsupported value: {other:?}: supported values: \"Foreground\", \"Background\", \"Orphan\", \"nil\""
                    ),
                ));
            }
        };
        let grace = match body["gracePeriodSeconds"].as_i64() {
            Some(seconds) => Some(seconds),
            None => query.number("gracePeriodSeconds")?,
        };
        let text = |value: &Value| value.as_str().map(str::to_owned);
        Ok(Self {
            grace,
            propagation,
            uid: text(&body["preconditions"]["uid"]),
            revision: text(&body["preconditions"]["resourceVersion"]),
            dry_run: query.get("dryRun") == Some("All") || body["dryRun"][0] == "All",
        })
    }

    fn check(&self, resource: &Resource, name: &str, object: &Value) -> Result<(), ApiError> {
        for (what, wanted, field) in [
            ("UID", &self.uid, "uid"),
            ("ResourceVersion", &self.revision, "resourceVersion"),
        ] {
            let is = object["metadata"][field].as_str().unwrap_or_default();
            if let Some(wanted) = wanted
                && wanted != is
            {
                let why = format!(
                    "Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {is}"
                );
                return Err(ApiError::conflict(resource, name, &why));
            }
        }
        Ok(())
    }
}

// === impl Core ===

impl Core {
    pub(crate) fn delete(&self, target: &Target, options: &DeleteOptions) -> Result<Written, ApiError> {
        let resource = &target.resource;
        let name = target.name.as_deref().unwrap_or_default();
        if resource.is("", "namespaces") && matches!(name, "default" | "kube-system" | "kube-public") {
            return Err(ApiError::forbidden(
                resource,
                name,
                "this namespace may not be deleted",
            ));
        }
        for _ in 0..RETRIES {
            let current = self.get(target)?;
            let old = read::view_value(resource, &current);
            options.check(resource, name, &old)?;
            let mut new = old.clone();
            let warnings = set_finalizers(resource, &mut new, options);
            set_deletion(resource, &mut new, options);
            let gone = strategy::may_vanish(&new);
            let answer = |object: Value| {
                let returns_object = !gone
                    || matches!(
                        resource.plural.as_str(),
                        "pods"
                            | "persistentvolumeclaims"
                            | "serviceaccounts"
                            | "resourcequotas"
                            | "podtemplates"
                    );
                let object = if returns_object {
                    object
                } else {
                    success(resource, name, &object)
                };
                Written {
                    object,
                    status: StatusCode::OK,
                    warnings: warnings.clone(),
                }
            };
            if options.dry_run || new == old {
                return Ok(answer(new));
            }
            read::to_storage(resource, &mut new);
            let expect = Expect::Revision(current.revision);
            let done = if gone {
                self.store.remove(&resource.shelf, &current.key, expect, new)
            } else {
                self.store.put(&resource.shelf, &current.key, expect, new)
            };
            if let Ok(stored) = done {
                if gone {
                    self.after_removal(resource, &stored);
                }
                return Ok(answer(read::view_value(resource, &stored)));
            }
        }
        Err(ApiError::modified(resource, name))
    }

    /// Deletes what is selected; the answer is the list of it.
    pub(crate) fn delete_collection(
        &self,
        selection: &Selection,
        options: &DeleteOptions,
    ) -> Result<Value, ApiError> {
        let resource = &selection.resource;
        let range = Range {
            namespace: &selection.namespace,
            ..Range::default()
        };
        let page = self
            .store
            .list(&resource.shelf, &range, |stored| selection.matches(stored))
            .map_err(|_| ApiError::expired("the list expired"))?;
        let mut items = Vec::new();
        for stored in page.items {
            let target = Target {
                resource: std::sync::Arc::clone(resource),
                namespace: stored.key.namespace.to_string(),
                name: Some(stored.key.name.to_string()),
                subresource: None,
            };
            match self.delete(&target, options) {
                Ok(_) => items.push(read::view_value(resource, &stored)),
                Err(error) if error.code == StatusCode::NOT_FOUND => {}
                Err(error) => return Err(error),
            }
        }
        Ok(json!({
            "kind": resource.list_kind,
            "apiVersion": resource.api_version(),
            "metadata": { "resourceVersion": self.store.revision().to_string() },
            "items": items,
        }))
    }
}

/// The finalizers that a propagation policy asks for; returns warnings.
fn set_finalizers(resource: &Resource, object: &mut Value, options: &DeleteOptions) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut finalizers: Vec<Value> = object["metadata"]["finalizers"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    // Jobs orphan their pods unless told otherwise, as batch/v1 always has.
    let policy = match options.propagation {
        None if resource.is("batch", "jobs")
            && !finalizers
                .iter()
                .any(|f| f == FOREGROUND_FINALIZER || f == ORPHAN_FINALIZER) =>
        {
            warnings.push("child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them or set propagationPolicy=Orphan to suppress this warning".to_owned());
            Some(Propagation::Orphan)
        }
        policy => policy,
    };
    if let Some(policy) = policy {
        finalizers.retain(|finalizer| finalizer != ORPHAN_FINALIZER && finalizer != FOREGROUND_FINALIZER);
        match policy {
            Propagation::Orphan => finalizers.push(Value::from(ORPHAN_FINALIZER)),
            Propagation::Foreground => finalizers.push(Value::from(FOREGROUND_FINALIZER)),
            Propagation::Background => {}
        }
    }
    if finalizers.is_empty() {
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.remove("finalizers");
        }
    } else {
        object["metadata"]["finalizers"] = Value::Array(finalizers);
    }
    warnings
}

fn set_deletion(resource: &Resource, object: &mut Value, options: &DeleteOptions) {
    let grace = grace_seconds(resource, object, options);
    let metadata = &mut object["metadata"];
    let already = metadata["deletionTimestamp"].is_string();
    let shorter = metadata["deletionGracePeriodSeconds"]
        .as_i64()
        .is_some_and(|current| grace < current);
    if !already || shorter {
        metadata["deletionTimestamp"] = Value::from(strategy::in_seconds(grace));
        metadata["deletionGracePeriodSeconds"] = Value::from(grace);
        if let Some(generation) = metadata["generation"].as_i64()
            && !already
        {
            metadata["generation"] = Value::from(generation + 1);
        }
    }
    if resource.is("", "namespaces") {
        object["status"]["phase"] = Value::from("Terminating");
    }
}

/// Only pods die slowly, and only those that a kubelet runs.
fn grace_seconds(resource: &Resource, pod: &Value, options: &DeleteOptions) -> i64 {
    if !resource.is("", "pods") {
        return 0;
    }
    let assigned = pod["spec"]["nodeName"]
        .as_str()
        .is_some_and(|node| !node.is_empty());
    let over = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    if !assigned || over {
        return 0;
    }
    // A negative period means the shortest that isn't immediate.
    let wanted = options
        .grace
        .or_else(|| pod["spec"]["terminationGracePeriodSeconds"].as_i64())
        .unwrap_or(30);
    if wanted < 0 { 1 } else { wanted }
}

fn success(resource: &Resource, name: &str, object: &Value) -> Value {
    let details = Details {
        name: name.to_owned(),
        group: resource.group.clone(),
        kind: resource.plural.clone(),
        uid: object["metadata"]["uid"].as_str().unwrap_or_default().to_owned(),
        ..Details::default()
    };
    json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": details.to_json(),
    })
}
