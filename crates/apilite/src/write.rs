//! Create, update, patch.

use std::sync::Arc;

use http::StatusCode;
use serde_json::Value;

use crate::apply;
use crate::body::{admit_body, check_namespace, read_applied, read_body};
use crate::core::Core;
use crate::decode::Decoded;
use crate::error::{ApiError, FieldError};
use crate::patch::Patch;
use crate::read;
use crate::registry::{Origin, Resource};
use crate::route::{Query, Target};
use crate::store::{Expect, Key, Stored};
use crate::strategy;

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

// === impl Written ===

impl Written {
    pub(crate) fn new(status: StatusCode, object: Value) -> Self {
        Self {
            object,
            status,
            warnings: Vec::new(),
        }
    }

    fn warning(mut self, warnings: impl IntoIterator<Item = String>) -> Self {
        self.warnings.extend(warnings);
        self
    }
}

// === impl Core ===

impl Core {
    /// What speaks against an object of a custom type beside its schema.
    fn judge(&self, resource: &Resource, object: &Value) -> Option<FieldError> {
        let admission = self
            .admission
            .filter(|_| matches!(resource.origin, Origin::Custom(_)))?;
        let (field, said) = admission(&resource.kind, object)?;
        Some(FieldError::refused(&field, said))
    }

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
        let written = self.create_object(target, object, options)?;
        Ok(written.warning(warnings))
    }

    /// Creates an object whose body was read and checked.
    fn create_object(
        &self,
        target: &Target,
        mut object: Value,
        options: &WriteOptions,
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
            let mut problems = strategy::validate_create(resource, &candidate);
            problems.extend(self.judge(resource, &candidate));
            if !problems.is_empty() {
                return Err(ApiError::invalid(
                    &resource.group,
                    &resource.kind,
                    &name,
                    &problems,
                ));
            }
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
                return Ok(Written::new(StatusCode::CREATED, candidate));
            }
            match self.store.put(&resource.shelf, &key, Expect::Absent, candidate) {
                Ok(stored) => {
                    lease.keep();
                    self.after_write(resource, &stored);
                    return Ok(Written::new(
                        StatusCode::CREATED,
                        read::view_value(resource, &stored),
                    ));
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
            let problem = FieldError::invalid(
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
        let written = self.rewrite(target, endpoint, options, |_| Ok(object.clone()))?;
        Ok(written.warning(warnings))
    }

    pub(crate) fn patch(
        &self,
        target: &Target,
        endpoint: Endpoint,
        patch: &Patch,
        options: &WriteOptions,
    ) -> Result<Written, ApiError> {
        if let Patch::Apply(applied) = patch {
            return self.apply(target, endpoint, applied, options);
        }
        if options.force {
            return Err(patch_options_error(
                "force: Forbidden: may not be specified for non-apply patch",
                "FieldValueForbidden",
                "force",
            ));
        }
        let resource = &target.resource;
        let mut complaints = Vec::new();
        let written = self.rewrite(target, endpoint, options, |current| {
            let object = patch.apply_to(resource, current)?;
            let body = Decoded {
                object,
                duplicates: patch.duplicates(),
            };
            let (object, found) = read_body(resource, body)?;
            if options.validation == FieldValidation::Strict && !found.is_empty() {
                let detail = format!("strict decoding error: {}", found.join(", "));
                let problem = FieldError::invalid("patch", &Value::from(patch.to_string()), detail);
                return Err(ApiError::invalid("", "", "", &[problem]));
            }
            complaints = found;
            Ok(object)
        })?;
        Ok(if options.validation == FieldValidation::Warn {
            written.warning(complaints)
        } else {
            written
        })
    }

    fn apply(
        &self,
        target: &Target,
        endpoint: Endpoint,
        applied: &Decoded,
        options: &WriteOptions,
    ) -> Result<Written, ApiError> {
        let resource = &target.resource;
        let name = target.name.as_deref().unwrap_or_default();
        if !options.manager_named {
            return Err(patch_options_error(
                "fieldManager: Required value: is required for apply patch",
                "FieldValueRequired",
                "fieldManager",
            ));
        }
        let managed = applied.object["metadata"]["managedFields"].as_array();
        if managed.is_some_and(|entries| !entries.is_empty()) {
            return Err(ApiError::bad_request("metadata.managedFields must be nil"));
        }
        let applied = read_applied(target, applied.clone())?;
        let warnings = resource
            .custom()
            .and_then(|custom| custom.deprecation_warning.clone());
        for _ in 0..RETRIES {
            let done = if self.get(target).is_ok() {
                self.rewrite_as(target, endpoint, options, true, |current| {
                    apply::merge(resource, current, &applied, endpoint, options)
                })
            } else if endpoint == Endpoint::Main {
                let object = apply::create(resource, &applied, options);
                self.create_object(target, object, options)
            } else {
                return Err(ApiError::not_found(resource, name));
            };
            match done {
                // It went or came in between.
                Err(error) if matches!(error.reason, "NotFound" | "AlreadyExists") => {}
                done => return done.map(|written| written.warning(warnings)),
            }
        }
        Err(ApiError::modified(resource, name))
    }

    /// Replaces an object by what `change` makes of its current state.
    pub(crate) fn rewrite(
        &self,
        target: &Target,
        endpoint: Endpoint,
        options: &WriteOptions,
        change: impl FnMut(&Value) -> Result<Value, ApiError>,
    ) -> Result<Written, ApiError> {
        self.rewrite_as(target, endpoint, options, false, change)
    }

    fn rewrite_as(
        &self,
        target: &Target,
        endpoint: Endpoint,
        options: &WriteOptions,
        by_apply: bool,
        mut change: impl FnMut(&Value) -> Result<Value, ApiError>,
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
            let mut problems = strategy::validate_update(resource, endpoint, &new, &old);
            problems.extend(self.judge(resource, &new));
            if !problems.is_empty() {
                return Err(ApiError::invalid(
                    &resource.group,
                    &resource.kind,
                    name,
                    &problems,
                ));
            }
            new["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"].clone();
            if !by_apply {
                apply::note_update(resource, endpoint, options, &old, &mut new);
            }
            if strategy::same_but_bookkeeping(&new, &old) {
                return Ok(Written::new(StatusCode::OK, old));
            }
            let gone = strategy::may_vanish(&new);
            read::to_storage(resource, &mut new);
            if options.dry_run {
                read::from_storage(resource, &mut new);
                return Ok(Written::new(StatusCode::OK, new));
            }
            let expect = Expect::Revision(current.revision);
            let done = if gone {
                self.store.remove(&resource.shelf, &current.key, expect, new)
            } else {
                self.store.put(&resource.shelf, &current.key, expect, new)
            };
            // If somebody was faster, it is tried on the newer state; a change that names its version
            // fails on that.
            let Ok(stored) = done else { continue };
            lease.keep();
            if gone {
                self.after_removal(resource, &stored);
            } else {
                self.after_write(resource, &stored);
            }
            return Ok(Written::new(StatusCode::OK, read::view_value(resource, &stored)));
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

fn patch_options_error(what: &str, reason: &'static str, field: &str) -> ApiError {
    let message = format!("PatchOptions.meta.k8s.io \"\" is invalid: {what}");
    let cause = what.split_once(": ").map_or(what, |(_, cause)| cause);
    ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message).with_cause(reason, cause, field)
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
    name
}
