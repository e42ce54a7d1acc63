//! Bodies of writes, checked against their resource: kind, namespace, declared fields and their types.

use http::StatusCode;
use serde_json::{Value, json};

use crate::decode::Decoded;
use crate::error::ApiError;
use crate::registry::{Origin, Resource};
use crate::route::Target;
use crate::schema::Schema;
use crate::write::{FieldValidation, WriteOptions};
use crate::{structural, typed};

/// Checks a body against the resource's schema: kind, unknown, repeated and mistyped fields.
pub(crate) fn admit_body(
    resource: &Resource,
    body: Decoded,
    options: &WriteOptions,
    warnings: &mut Vec<String>,
) -> Result<Value, ApiError> {
    let (object, complaints) = read_body(resource, body)?;
    if options.validation == FieldValidation::Strict && !complaints.is_empty() {
        let (kind, version) = (&resource.kind, &resource.version);
        return Err(ApiError::bad_request(format!(
            "{kind} in version {version:?} cannot be handled as a {kind}: strict decoding error: {}",
            complaints.join(", ")
        )));
    }
    if options.validation == FieldValidation::Warn {
        warnings.extend(complaints);
    }
    warnings.extend(
        resource
            .custom()
            .and_then(|custom| custom.deprecation_warning.clone()),
    );
    Ok(object)
}

/// The object in a body, and what strict validation objects to.
pub(crate) fn read_body(resource: &Resource, body: Decoded) -> Result<(Value, Vec<String>), ApiError> {
    let Decoded {
        mut object,
        duplicates,
    } = body;
    check_kind(resource, &mut object)?;
    let mut complaints: Vec<String> = duplicates
        .iter()
        .map(|path| format!("duplicate field {path:?}"))
        .collect();
    complaints.extend(prune(resource, &mut object)?);
    Ok((object, complaints))
}

/// Drops undeclared fields; returns what strict validation says of them.
fn prune(resource: &Resource, object: &mut Value) -> Result<Vec<String>, ApiError> {
    let decode_error = |error: String| {
        let (kind, version) = (&resource.kind, &resource.version);
        ApiError::bad_request(format!(
            "{kind} in version {version:?} cannot be handled as a {kind}: {error}"
        ))
    };
    let unknown = match resource.origin {
        Origin::BuiltIn(_) => {
            typed::read(Schema::of(resource), &resource.kind, object).map_err(decode_error)?
        }
        Origin::Custom(_) => {
            let mut wrapped = json!({ "metadata": object["metadata"].take() });
            let holder =
                json!({ "type": "object", "properties": { "metadata": Schema::metadata_reference() } });
            let mut unknown =
                typed::read(Schema::new(&holder), &resource.kind, &mut wrapped).map_err(decode_error)?;
            object["metadata"] = wrapped["metadata"].take();
            unknown.extend(structural::prune(Schema::of(resource), object, "", true));
            unknown
        }
    };
    Ok(unknown
        .into_iter()
        .map(|path| format!("unknown field {path:?}"))
        .collect())
}

fn check_kind(resource: &Resource, object: &mut Value) -> Result<(), ApiError> {
    if !object.is_object() {
        return Err(ApiError::bad_request(format!(
            "the object provided is unrecognized (must be of type {}): couldn't get version/kind; json parse error: not an object",
            resource.kind
        )));
    }
    let api_version = resource.api_version();
    match object["apiVersion"].as_str() {
        None | Some("") => object["apiVersion"] = Value::from(api_version),
        Some(given) if given != api_version => {
            return Err(ApiError::bad_request(format!(
                "the API version in the data ({given}) does not match the expected API version ({api_version})"
            )));
        }
        Some(_) => {}
    }
    match object["kind"].as_str() {
        None | Some("") => object["kind"] = Value::from(resource.kind.as_str()),
        Some(given) if given != resource.kind => {
            return Err(ApiError::bad_request(format!(
                "{given} in version {:?} cannot be handled as a {}: converting ({given}) to ({}): unknown conversion",
                resource.version, resource.kind, resource.kind
            )));
        }
        Some(_) => {}
    }
    if !object["metadata"].is_object() {
        object["metadata"] = json!({});
    }
    Ok(())
}

pub(crate) fn check_namespace(
    resource: &Resource,
    namespace: &str,
    object: &mut Value,
) -> Result<(), ApiError> {
    let given = object["metadata"]["namespace"].as_str().unwrap_or_default();
    if !resource.namespaced {
        if given.is_empty() {
            if let Some(metadata) = object["metadata"].as_object_mut() {
                metadata.remove("namespace");
            }
            return Ok(());
        }
        return Err(ApiError::bad_request("namespace is not allowed on this type"));
    }
    if namespace.is_empty() {
        return Err(ApiError::bad_request(
            "an empty namespace may not be set during creation",
        ));
    }
    if !given.is_empty() && given != namespace {
        return Err(ApiError::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    object["metadata"]["namespace"] = Value::from(namespace);
    Ok(())
}

/// The configuration in an apply patch; undeclared fields are an error whatever validation is asked for.
pub(crate) fn read_applied(target: &Target, body: Decoded) -> Result<Value, ApiError> {
    let resource = &target.resource;
    let name = target.name.as_deref().unwrap_or_default();
    let (mut applied, complaints) = read_body(resource, body)?;
    let undeclared: Vec<String> = complaints
        .iter()
        .filter_map(|complaint| complaint.strip_prefix("unknown field "))
        .map(|path| format!(".{}: field not declared in schema", path.trim_matches('"')))
        .collect();
    if !undeclared.is_empty() {
        let message = format!(
            "failed to create typed patch object ({}/{name}; {}, Kind={}): {}",
            target.namespace,
            resource.api_version(),
            resource.kind,
            undeclared.join(", ")
        );
        return Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "", message));
    }
    check_namespace(resource, &target.namespace, &mut applied)?;
    match applied["metadata"]["name"].as_str() {
        None | Some("") => applied["metadata"]["name"] = Value::from(name),
        Some(given) if given != name => {
            return Err(ApiError::bad_request(format!(
                "the name of the object ({given}) does not match the name on the URL ({name})"
            )));
        }
        Some(_) => {}
    }
    Ok(applied)
}
