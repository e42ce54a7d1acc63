//! Server-side apply.

use serde_json::Value;

use crate::core::Core;
use crate::error::ApiError;
use crate::registry::Resource;
use crate::write::{Endpoint, WriteOptions};

pub(crate) fn create(_core: &Core, _resource: &Resource, applied: &Value, _options: &WriteOptions) -> Value {
    applied.clone()
}

pub(crate) fn merge(
    _core: &Core,
    _resource: &Resource,
    current: &Value,
    applied: &Value,
    _endpoint: Endpoint,
    _options: &WriteOptions,
) -> Result<Value, ApiError> {
    let mut object = current.clone();
    json_patch::merge(&mut object, applied);
    Ok(object)
}
