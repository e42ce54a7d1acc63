//! Subresources other than status: scale, binding, eviction, finalize, log.

use http::{Method, Response, StatusCode, header};
use serde_json::{Value, json};

use crate::core::Core;
use crate::error::{ApiError, FieldError};
use crate::http::{Incoming, encode, json_response, to_bytes, written};
use crate::patch::Patch;
use crate::read;
use crate::registry::{Resource, Scale};
use crate::remove::DeleteOptions;
use crate::route::Target;
use crate::server::Body;
use crate::write::{Endpoint, WriteOptions};

pub(crate) fn answer(
    core: &Core,
    target: &Target,
    subresource: &str,
    incoming: &Incoming,
) -> Result<Response<Body>, ApiError> {
    let resource = &target.resource;
    if subresource == "scale"
        && let Some(paths) = &resource.scale
    {
        return scale(core, target, paths, incoming);
    }
    if !resource.actions.iter().any(|action| action.name == subresource) {
        return Err(ApiError::no_such_path());
    }
    match (subresource, incoming.method()) {
        ("binding", &Method::POST) => bind(core, target, incoming),
        ("eviction", &Method::POST) => evict(core, target, incoming),
        ("finalize", &Method::PUT) => finalize(core, target, incoming),
        ("log", &Method::GET) => {
            core.get(target)?;
            Err(ApiError::new(
                StatusCode::NOT_IMPLEMENTED,
                "NotImplemented",
                "pods of this API run no containers, so that there are no logs",
            ))
        }
        _ => Err(ApiError::method_not_allowed()),
    }
}

fn options(incoming: &Incoming) -> Result<WriteOptions, ApiError> {
    WriteOptions::parse(incoming.query(), incoming.header(header::USER_AGENT))
}

fn success(status: StatusCode) -> Response<Body> {
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": status.as_u16(),
    });
    json_response(status, to_bytes(&body))
}

/// The `autoscaling/v1` Scale of an object.
fn scale_of(resource: &Resource, paths: &Scale, object: &Value) -> Value {
    let number = |pointer: &str| {
        object
            .pointer(pointer)
            .and_then(Value::as_i64)
            .unwrap_or_default()
    };
    let selector = paths
        .selector
        .as_deref()
        .and_then(|pointer| object.pointer(pointer));
    let mut out = json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {},
        "spec": { "replicas": number(&paths.spec_replicas) },
        "status": { "replicas": number(&paths.status_replicas) },
    });
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object["metadata"].get(field) {
            out["metadata"][field] = value.clone();
        }
    }
    let text = match selector {
        Some(Value::String(text)) => Some(text.clone()),
        Some(selector) if resource.custom().is_none() => Some(crate::table::selector_text(selector)),
        _ => None,
    };
    if let Some(text) = text {
        out["status"]["selector"] = text.into();
    }
    out
}

/// What a Scale is to become.
type Wanted<'a> = Box<dyn Fn(&Value) -> Result<Value, ApiError> + 'a>;

fn scale(
    core: &Core,
    target: &Target,
    paths: &Scale,
    incoming: &Incoming,
) -> Result<Response<Body>, ApiError> {
    let resource = &target.resource;
    let current = || -> Result<Value, ApiError> {
        let stored = core.get(target)?;
        Ok(scale_of(resource, paths, &read::view_value(resource, &stored)))
    };
    let accept = incoming.accept()?;
    let wanted: Wanted<'_> = match *incoming.method() {
        Method::GET => return Ok(encode(StatusCode::OK, &current()?, accept.yaml)),
        Method::PUT => {
            let body = incoming.decode()?.object;
            Box::new(move |_| Ok(body.clone()))
        }
        Method::PATCH => {
            let patch = Patch::parse(resource, incoming.header(header::CONTENT_TYPE), incoming.body())?;
            Box::new(move |scale| patch.apply_plainly(scale))
        }
        _ => return Err(ApiError::method_not_allowed()),
    };
    let name = target.name.as_deref().unwrap_or_default();
    let written = core.rewrite(target, Endpoint::Main, &options(incoming)?, |object| {
        let scale = wanted(&scale_of(resource, paths, object))?;
        let replicas = match &scale["spec"]["replicas"] {
            Value::Null => 0,
            number => number.as_i64().ok_or_else(|| {
                ApiError::bad_request("Scale in version \"v1\" cannot be handled as a Scale: json: cannot unmarshal string into Go struct field ScaleSpec.spec.replicas of type int32")
            })?,
        };
        if replicas < 0 {
            let problem = FieldError::invalid(
                "spec.replicas",
                &replicas.into(),
                "must be greater than or equal to 0",
            );
            return Err(ApiError::invalid("autoscaling", "Scale", name, &[problem]));
        }
        let mut object = object.clone();
        // A PUT may pin the version it was made for.
        object["metadata"]["resourceVersion"] = scale["metadata"]["resourceVersion"].clone();
        set(&mut object, &paths.spec_replicas, replicas.into());
        Ok(object)
    })?;
    Ok(encode(
        StatusCode::OK,
        &scale_of(resource, paths, &written.object),
        accept.yaml,
    ))
}

/// Sets a value at a JSON pointer, making objects on the way.
fn set(object: &mut Value, pointer: &str, value: Value) {
    let mut place = object;
    for part in pointer.split('/').skip(1) {
        place = &mut place[part.replace("~1", "/").replace("~0", "~")];
    }
    *place = value;
}

/// Assigns a pod to a node, once.
fn bind(core: &Core, target: &Target, incoming: &Incoming) -> Result<Response<Body>, ApiError> {
    let body = incoming.decode()?.object;
    let name = target.name.as_deref().unwrap_or_default();
    let Some(node) = body["target"]["name"].as_str().filter(|node| !node.is_empty()) else {
        let problem = FieldError::required("target.name", "");
        return Err(ApiError::invalid("", "Binding", name, &[problem]));
    };
    let uid = body["metadata"]["uid"].as_str().unwrap_or_default();
    core.rewrite(target, Endpoint::Whole, &options(incoming)?, |pod| {
        let refuse = |why: &str| Err(ApiError::conflict_on("pods/binding", name, why));
        if !uid.is_empty() && pod["metadata"]["uid"] != uid {
            let is = pod["metadata"]["uid"].as_str().unwrap_or_default();
            return refuse(&format!(
                "Precondition failed: UID in precondition: {uid}, UID in object meta: {is}"
            ));
        }
        if pod["metadata"]["deletionTimestamp"].is_string() {
            return refuse(&format!(
                "pod {name} is being deleted, cannot be assigned to a host"
            ));
        }
        if let Some(assigned) = pod["spec"]["nodeName"].as_str().filter(|node| !node.is_empty()) {
            return refuse(&format!("pod {name} is already assigned to node {assigned:?}"));
        }
        let mut pod = pod.clone();
        pod["spec"]["nodeName"] = node.into();
        for field in ["annotations", "labels"] {
            for (key, value) in body["metadata"][field].as_object().into_iter().flatten() {
                pod["metadata"][field][key] = value.clone();
            }
        }
        let condition = json!({
            "type": "PodScheduled",
            "status": "True",
            "lastProbeTime": null,
            "lastTransitionTime": crate::strategy::now(),
        });
        if !pod["status"]["conditions"].is_array() {
            pod["status"]["conditions"] = json!([]);
        }
        if let Some(conditions) = pod["status"]["conditions"].as_array_mut() {
            conditions.retain(|known| known["type"] != "PodScheduled");
            conditions.push(condition);
        }
        Ok(pod)
    })?;
    Ok(success(StatusCode::CREATED))
}

/// Deletes a pod if its disruption budgets allow it.
fn evict(core: &Core, target: &Target, incoming: &Incoming) -> Result<Response<Body>, ApiError> {
    let body = incoming.decode()?.object;
    let name = target.name.as_deref().unwrap_or_default();
    if let Some(given) = body["metadata"]["name"].as_str()
        && given != name
    {
        return Err(ApiError::bad_request(
            "name in URL does not match name in Eviction object",
        ));
    }
    let options = DeleteOptions::parse(Some(&body["deleteOptions"]), incoming.query())?;
    let stored = core.get(target)?;
    let pod = stored.value();
    let running = matches!(pod["status"]["phase"].as_str(), Some("Running"));
    if running && let Some(budget) = core.exhausted_budget(&target.namespace, &pod) {
        let message = "Cannot evict pod as it would violate the pod's disruption budget.";
        let error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", message);
        return Err(error.with_cause(
            "DisruptionBudget",
            format!("The disruption budget {budget} does not allow evicting pods currently"),
            "",
        ));
    }
    core.delete(target, &options)?;
    Ok(success(StatusCode::CREATED))
}

fn finalize(core: &Core, target: &Target, incoming: &Incoming) -> Result<Response<Body>, ApiError> {
    let body = incoming.decode()?.object;
    let done = core.rewrite(target, Endpoint::Whole, &options(incoming)?, |namespace| {
        let mut namespace = namespace.clone();
        namespace["metadata"]["resourceVersion"] = body["metadata"]["resourceVersion"].clone();
        namespace["spec"]["finalizers"] = match &body["spec"]["finalizers"] {
            Value::Null => json!([]),
            finalizers => finalizers.clone(),
        };
        Ok(namespace)
    })?;
    written(target, done, incoming)
}

// === impl Core ===

impl Core {
    /// A budget over the pod that allows no disruption; its controller keeps the count in its status.
    fn exhausted_budget(&self, namespace: &str, pod: &Value) -> Option<String> {
        let shelf = crate::registry::Shelf::new("policy", "poddisruptionbudgets");
        let range = crate::store::Range {
            namespace,
            ..crate::store::Range::default()
        };
        let budgets = self.store.list(&shelf, &range, |_| true).ok()?;
        budgets
            .items
            .iter()
            .map(|stored| stored.value())
            .find_map(|budget| {
                let selector = crate::selector::LabelSelector::from_object(&budget["spec"]["selector"])?;
                let applies = selector.matches(|key| pod["metadata"]["labels"][key].as_str());
                let exhausted = budget["status"]["disruptionsAllowed"].as_i64()? <= 0;
                (applies && exhausted)
                    .then(|| budget["metadata"]["name"].as_str().map(str::to_owned))
                    .flatten()
            })
    }
}
