//! Create, update, patch.

use std::sync::Arc;

use http::StatusCode;
use serde_json::{Value, json};

use crate::apply;
use crate::core::Core;
use crate::decode::Decoded;
use crate::error::ApiError;
use crate::names;
use crate::patch::Patch;
use crate::read;
use crate::registry::{Origin, Resource};
use crate::route::{Query, Target};
use crate::schema::Schema;
use crate::store::{Expect, Key, Stored};
use crate::{strategy, structural, typed};

/// Query parameters of a write.
#[derive(Clone, Debug)]
pub(crate) struct WriteOptions {
    pub(crate) dry_run: bool,
    pub(crate) manager: String,
    pub(crate) validation: FieldValidation,
    /// Take over fields that other managers own (server-side apply).
    pub(crate) force: bool,
    /// The client named its field manager.
    pub(crate) manager_named: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

/// Which part of an object a write may change.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Endpoint {
    Main,
    Status,
    /// Everything, unchecked: `pods/binding`, `namespaces/finalize`, the server's own upkeep.
    Whole,
}

/// What a write left behind.
#[derive(Debug)]
pub(crate) struct Written {
    /// As the requested version shows it.
    pub(crate) object: Value,
    pub(crate) status: StatusCode,
    pub(crate) warnings: Vec<String>,
}

/// How often a patch is tried again when others write the object meanwhile.
const RETRIES: usize = 16;

// === impl WriteOptions ===

impl WriteOptions {
    /// For the server's own writes.
    pub(crate) fn internal() -> Self {
        Self {
            dry_run: false,
            manager: "apilite".to_owned(),
            validation: FieldValidation::Ignore,
            force: false,
            manager_named: true,
        }
    }

    pub(crate) fn parse(query: &Query, user_agent: Option<&str>) -> Result<Self, ApiError> {
        let validation = match query.get("fieldValidation") {
            Some("Ignore") => FieldValidation::Ignore,
            None | Some("Warn") => FieldValidation::Warn,
            Some("Strict") => FieldValidation::Strict,
            Some(other) => {
                return Err(ApiError::bad_request(format!(
                    "fieldValidation: Unsupported value: {other:?}: supported values: \"\", \"Ignore\", \"Strict\", \"Warn\""
                )));
            }
        };
        let dry_run = match query.get("dryRun") {
            None => false,
            Some("All") => true,
            Some(other) => {
                return Err(ApiError::bad_request(format!(
                    "dryRun: Unsupported value: {other:?}: supported values: \"All\""
                )));
            }
        };
        let agent = user_agent.unwrap_or("unknown");
        let manager = query
            .get("fieldManager")
            .unwrap_or_else(|| agent.split('/').next().unwrap_or(agent));
        Ok(Self {
            dry_run,
            manager: manager.to_owned(),
            validation,
            force: query.flag("force"),
            manager_named: query.get("fieldManager").is_some(),
        })
    }
}

// === impl Core ===

impl Core {
    pub(crate) fn create(
        &self,
        target: &Target,
        body: Decoded,
        options: &WriteOptions,
    ) -> Result<Written, ApiError> {
        let resource = &target.resource;
        let mut warnings = Vec::new();
        let mut object = admit_body(resource, body, options, &mut warnings)?;
        check_namespace(resource, &target.namespace, &mut object)?;
        self.create_object(target, object, options, warnings)
    }

    /// Creates an object whose body was read and checked.
    fn create_object(
        &self,
        target: &Target,
        mut object: Value,
        options: &WriteOptions,
        mut warnings: Vec<String>,
    ) -> Result<Written, ApiError> {
        let resource = &target.resource;
        if !object["metadata"]["resourceVersion"]
            .as_str()
            .unwrap_or_default()
            .is_empty()
        {
            return Err(ApiError::bad_request(
                "resourceVersion should not be set on objects to be created",
            ));
        }
        self.check_namespace_accepts(resource, &target.namespace, &object)?;
        let generate = object["metadata"]["generateName"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let given = object["metadata"]["name"]
            .as_str()
            .is_some_and(|name| !name.is_empty());
        strategy::new_object(resource, &mut object);
        strategy::default(resource, &mut object);
        strategy::prepare_create(resource, &mut object);
        for attempt in 0.. {
            if !given && !generate.is_empty() {
                object["metadata"]["name"] = Value::from(generated_name(&generate));
            }
            let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            let mut candidate = object.clone();
            let lease = self.allocate(resource, &mut candidate, None)?;
            let problems = strategy::validate_create(resource, &candidate);
            if !problems.is_empty() {
                return Err(ApiError::invalid(
                    &resource.group,
                    &resource.kind,
                    &name,
                    &problems,
                ));
            }
            warnings.extend(strategy::warnings(resource, &candidate));
            let key = Key::new(&target.namespace, &name);
            if self.store.get(&resource.shelf, &key).is_some() {
                if !given && attempt < 8 {
                    continue;
                }
                return Err(ApiError::already_exists(resource, &name));
            }
            read::to_storage(resource, &mut candidate);
            if options.dry_run {
                read::from_storage(resource, &mut candidate);
                return Ok(Written {
                    object: candidate,
                    status: StatusCode::CREATED,
                    warnings,
                });
            }
            match self.store.put(&resource.shelf, &key, Expect::Absent, candidate) {
                Ok(stored) => {
                    lease.keep();
                    self.after_write(resource, &stored);
                    let object = read::view_value(resource, &stored);
                    return Ok(Written {
                        object,
                        status: StatusCode::CREATED,
                        warnings,
                    });
                }
                Err(_) if !given && attempt < 8 => {}
                Err(_) => return Err(ApiError::already_exists(resource, &name)),
            }
        }
        unreachable!("the loop ends by returning")
    }

    pub(crate) fn update(
        &self,
        target: &Target,
        endpoint: Endpoint,
        body: Decoded,
        options: &WriteOptions,
    ) -> Result<Written, ApiError> {
        let resource = &target.resource;
        let mut warnings = Vec::new();
        let mut object = admit_body(resource, body, options, &mut warnings)?;
        check_namespace(resource, &target.namespace, &mut object)?;
        let name = target.name.as_deref().unwrap_or_default();
        match object["metadata"]["name"].as_str() {
            None | Some("") => {
                return Err(ApiError::bad_request(
                    "the name of the object (based on URL) was undeterminable: name must be provided",
                ));
            }
            Some(given) if given != name => {
                return Err(ApiError::bad_request(format!(
                    "the name of the object ({given}) does not match the name on the URL ({name})"
                )));
            }
            Some(_) => {}
        }
        let conditional = !object["metadata"]["resourceVersion"]
            .as_str()
            .unwrap_or_default()
            .is_empty();
        if !conditional && matches!(resource.origin, Origin::Custom(_)) {
            let problem = crate::error::FieldError::invalid(
                "metadata.resourceVersion",
                &Value::from(0),
                "must be specified for an update",
            );
            return Err(ApiError::invalid(
                &resource.group,
                &resource.kind,
                name,
                &[problem],
            ));
        }
        self.rewrite(target, endpoint, options, warnings, |_| Ok(object.clone()))
    }

    pub(crate) fn patch(
        &self,
        target: &Target,
        endpoint: Endpoint,
        patch: &Patch,
        options: &WriteOptions,
    ) -> Result<Written, ApiError> {
        let resource = &target.resource;
        let name = target.name.as_deref().unwrap_or_default();
        if let Patch::Apply(applied) = patch {
            if !options.manager_named {
                return Err(patch_options_error(
                    "fieldManager: Required value: is required for apply patch",
                    "FieldValueRequired",
                    "fieldManager",
                ));
            }
            if applied.object["metadata"]["managedFields"]
                .as_array()
                .is_some_and(|entries| !entries.is_empty())
            {
                return Err(ApiError::bad_request("metadata.managedFields must be nil"));
            }
            let body = Decoded {
                object: applied.object.clone(),
                duplicates: applied.duplicates.clone(),
            };
            let (mut applied, complaints) = read_body(resource, body)?;
            let undeclared: Vec<String> = complaints
                .iter()
                .filter_map(|complaint| complaint.strip_prefix("unknown field "))
                .map(|path| format!(".{}: field not declared in schema", path.trim_matches('"')))
                .collect();
            if !undeclared.is_empty() {
                return Err(ApiError::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "",
                    format!(
                        "failed to create typed patch object ({}/{name}; {}, Kind={}): {}",
                        target.namespace,
                        resource.api_version(),
                        resource.kind,
                        undeclared.join(", ")
                    ),
                ));
            }
            let warnings: Vec<String> = resource
                .custom()
                .and_then(|custom| custom.deprecation_warning.clone())
                .into_iter()
                .collect();
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
            for _ in 0..RETRIES {
                if self.get(target).is_err() {
                    if endpoint == Endpoint::Status {
                        return Err(ApiError::not_found(resource, name));
                    }
                    let object = apply::create(resource, &applied, options);
                    match self.create_object(target, object, options, warnings.clone()) {
                        Err(error) if error.reason == "AlreadyExists" => continue,
                        done => return done,
                    }
                }
                let done = self.rewrite_as(target, endpoint, options, warnings.clone(), true, |current| {
                    apply::merge(resource, current, &applied, endpoint, options)
                });
                match done {
                    Err(error) if error.code == StatusCode::NOT_FOUND => {}
                    done => return done,
                }
            }
            return Err(ApiError::modified(resource, name));
        }
        if options.force {
            return Err(patch_options_error(
                "force: Forbidden: may not be specified for non-apply patch",
                "FieldValueForbidden",
                "force",
            ));
        }
        let warnings = std::cell::RefCell::new(Vec::new());
        let written = self.rewrite(target, endpoint, options, Vec::new(), |current| {
            let object = patch.apply_to(resource, current)?;
            let (object, complaints) = read_body(
                resource,
                Decoded {
                    object,
                    duplicates: patch.duplicates(),
                },
            )?;
            if options.validation == FieldValidation::Strict && !complaints.is_empty() {
                let problem = crate::error::FieldError::invalid(
                    "patch",
                    &Value::from(patch.to_string()),
                    format!("strict decoding error: {}", complaints.join(", ")),
                );
                return Err(ApiError::invalid("", "", "", &[problem]));
            }
            *warnings.borrow_mut() = if options.validation == FieldValidation::Warn {
                complaints
            } else {
                Vec::new()
            };
            Ok(object)
        });
        written.map(|mut written| {
            written.warnings.splice(0..0, warnings.into_inner());
            written
        })
    }

    /// Replaces an object by what `change` makes of its current state.
    pub(crate) fn rewrite(
        &self,
        target: &Target,
        endpoint: Endpoint,
        options: &WriteOptions,
        warnings: Vec<String>,
        change: impl Fn(&Value) -> Result<Value, ApiError>,
    ) -> Result<Written, ApiError> {
        self.rewrite_as(target, endpoint, options, warnings, false, change)
    }

    fn rewrite_as(
        &self,
        target: &Target,
        endpoint: Endpoint,
        options: &WriteOptions,
        warnings: Vec<String>,
        by_apply: bool,
        change: impl Fn(&Value) -> Result<Value, ApiError>,
    ) -> Result<Written, ApiError> {
        let resource = &target.resource;
        let name = target.name.as_deref().unwrap_or_default();
        for _ in 0..RETRIES {
            let current = self.get(target)?;
            let old = read::view_value(resource, &current);
            let mut new = change(&old)?;
            check_identity(resource, name, &old, &new)?;
            match new["metadata"]["resourceVersion"].as_str() {
                None | Some("") => {}
                Some(revision) if read::parse_revision(revision)? == current.revision => {}
                Some(_) => return Err(ApiError::modified(resource, name)),
            }
            strategy::carry_over(resource, endpoint, &mut new, &old);
            strategy::default(resource, &mut new);
            strategy::prepare_update(resource, endpoint, &mut new, &old);
            let lease = self.allocate(resource, &mut new, Some(&old))?;
            let problems = strategy::validate_update(resource, endpoint, &new, &old);
            if !problems.is_empty() {
                return Err(ApiError::invalid(
                    &resource.group,
                    &resource.kind,
                    name,
                    &problems,
                ));
            }
            let mut warnings = warnings.clone();
            warnings.extend(strategy::warnings(resource, &new));
            new["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"].clone();
            if !by_apply {
                apply::note_update(resource, endpoint, options, &old, &mut new);
            }
            if strategy::same_but_bookkeeping(&new, &old) {
                return Ok(Written {
                    object: old,
                    status: StatusCode::OK,
                    warnings,
                });
            }
            let gone = strategy::may_vanish(&new);
            read::to_storage(resource, &mut new);
            if options.dry_run {
                read::from_storage(resource, &mut new);
                return Ok(Written {
                    object: new,
                    status: StatusCode::OK,
                    warnings,
                });
            }
            let expect = Expect::Revision(current.revision);
            let done = if gone {
                self.store.remove(&resource.shelf, &current.key, expect, new)
            } else {
                self.store.put(&resource.shelf, &current.key, expect, new)
            };
            match done {
                Ok(stored) => {
                    lease.keep();
                    if gone {
                        self.after_removal(resource, &stored);
                    } else {
                        self.after_write(resource, &stored);
                    }
                    let object = read::view_value(resource, &stored);
                    return Ok(Written {
                        object,
                        status: StatusCode::OK,
                        warnings,
                    });
                }
                // Somebody was faster. Tried on the newer state, a change that names its version fails.
                Err(_) => {}
            }
        }
        Err(ApiError::modified(resource, name))
    }

    fn check_namespace_accepts(
        &self,
        resource: &Resource,
        namespace: &str,
        object: &Value,
    ) -> Result<(), ApiError> {
        if !resource.namespaced {
            return Ok(());
        }
        let catalog = self.registry.catalog();
        let namespaces = catalog.find("", "v1", "namespaces").expect("built in");
        let found = self.store.get(&namespaces.shelf, &Key::new("", namespace));
        let Some(found) = found else {
            return Err(ApiError::not_found(namespaces, namespace));
        };
        let phase = crate::selectable::value(&namespaces.shelf, &found, "status.phase");
        if phase == Some("Terminating") {
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            let why = format!(
                "unable to create new content in namespace {namespace} because it is being terminated"
            );
            return Err(ApiError::forbidden(resource, name, &why).with_cause(
                "NamespaceTerminating",
                format!("namespace {namespace} is being terminated"),
                "metadata.namespace",
            ));
        }
        Ok(())
    }

    fn after_write(&self, resource: &Arc<Resource>, stored: &Stored) {
        if resource.is("apiextensions.k8s.io", "customresourcedefinitions") {
            self.definition_changed(stored);
        }
    }

    pub(crate) fn after_removal(&self, resource: &Resource, stored: &Stored) {
        if resource.is("apiextensions.k8s.io", "customresourcedefinitions") {
            self.definition_removed(stored);
        }
        if resource.is("", "services") {
            self.release(&stored.value());
        }
    }
}

/// Checks a body against the resource's schema: kind, unknown, repeated and mistyped fields.
fn admit_body(
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
fn read_body(resource: &Resource, body: Decoded) -> Result<(Value, Vec<String>), ApiError> {
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

fn patch_options_error(what: &str, reason: &'static str, field: &str) -> ApiError {
    let message = format!("PatchOptions.meta.k8s.io \"\" is invalid: {what}");
    let cause = what.split_once(": ").map_or(what, |(_, cause)| cause);
    ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message).with_cause(reason, cause, field)
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

fn check_namespace(resource: &Resource, namespace: &str, object: &mut Value) -> Result<(), ApiError> {
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

fn check_identity(resource: &Resource, name: &str, old: &Value, new: &Value) -> Result<(), ApiError> {
    match new["metadata"]["uid"].as_str() {
        Some(uid) if !uid.is_empty() && new["metadata"]["uid"] != old["metadata"]["uid"] => {
            let current = old["metadata"]["uid"].as_str().unwrap_or_default();
            let why =
                format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {current}");
            Err(ApiError::conflict(resource, name, &why))
        }
        _ => Ok(()),
    }
}

/// `generateName` plus five characters of the alphabet the real server uses (no vowels, no 0, 1, 3).
fn generated_name(prefix: &str) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    const SUFFIX: usize = 5;
    const MAX: usize = 63;
    let mut cut = prefix.len().min(MAX - SUFFIX);
    while !prefix.is_char_boundary(cut) {
        cut -= 1;
    }
    let mut name = prefix[..cut].to_owned();
    for byte in uuid::Uuid::new_v4().as_bytes().iter().take(SUFFIX) {
        name.push(char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()]));
    }
    debug_assert!(names::path_segment(&name).is_empty() || !names::path_segment(prefix).is_empty());
    name
}
