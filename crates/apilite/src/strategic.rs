//! Strategic merge patches.

use serde_json::Value;

use crate::core::Core;
use crate::error::ApiError;
use crate::registry::Resource;

pub(crate) fn merge(
    _core: &Core,
    _resource: &Resource,
    object: &mut Value,
    patch: &Value,
) -> Result<(), ApiError> {
    json_patch::merge(object, patch);
    Ok(())
}
