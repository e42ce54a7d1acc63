//! The patch kinds: JSON (RFC 6902), merge (RFC 7386), strategic merge, apply.

use serde_json::Value;

use crate::decode::{self, Decoded, Encoding};
use crate::error::ApiError;
use crate::registry::{Origin, Resource};
use crate::schema::Schema;
use crate::strategic;

#[derive(Debug)]
pub(crate) enum Patch {
    Json(json_patch::Patch),
    Merge(Decoded),
    Strategic(Decoded),
    Apply(Decoded),
}

pub(crate) const PATCH_TYPES: &str =
    "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml";
pub(crate) const PATCH_TYPES_BUILT_IN: &str = "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, application/apply-patch+yaml";

// === impl Patch ===

impl Patch {
    pub(crate) fn parse(
        resource: &Resource,
        content_type: Option<&str>,
        body: &[u8],
    ) -> Result<Self, ApiError> {
        let media = content_type
            .unwrap_or_default()
            .split(';')
            .next()
            .unwrap_or_default()
            .trim();
        let bad = |error: String| ApiError::bad_request(format!("error decoding patch: {error}"));
        let object = |decoded: Decoded| {
            if decoded.object.is_object() {
                Ok(decoded)
            } else {
                Err(bad(
                    "json: cannot unmarshal into a map: the patch is no object".to_owned()
                ))
            }
        };
        match (media, &resource.origin) {
            ("application/json-patch+json", _) => serde_json::from_slice(body)
                .map(Self::Json)
                .map_err(|error| bad(error.to_string())),
            ("application/merge-patch+json", _) => {
                object(decode::parse(body, Encoding::Json)?).map(Self::Merge)
            }
            ("application/strategic-merge-patch+json", Origin::BuiltIn(_)) => {
                object(decode::parse(body, Encoding::Json)?).map(Self::Strategic)
            }
            ("application/apply-patch+yaml", _) => {
                object(decode::parse(body, Encoding::Yaml)?).map(Self::Apply)
            }
            (_, Origin::BuiltIn(_)) => Err(ApiError::unsupported_media_type(PATCH_TYPES_BUILT_IN)),
            (_, Origin::Custom(_)) => Err(ApiError::unsupported_media_type(PATCH_TYPES)),
        }
    }

    pub(crate) fn duplicates(&self) -> Vec<String> {
        match self {
            Self::Json(_) => Vec::new(),
            Self::Merge(patch) | Self::Strategic(patch) | Self::Apply(patch) => patch.duplicates.clone(),
        }
    }

    /// The patched object. Apply patches aren't for here: they need to know the field managers.
    pub(crate) fn apply_to(&self, resource: &Resource, current: &Value) -> Result<Value, ApiError> {
        let mut object = current.clone();
        match self {
            Self::Json(patch) => json_patch::patch(&mut object, patch)
                .map_err(|error| ApiError::unprocessable_patch(&error.to_string()))?,
            Self::Merge(patch) | Self::Apply(patch) => json_patch::merge(&mut object, &patch.object),
            Self::Strategic(patch) => strategic::merge(Schema::of(resource), &mut object, &patch.object)
                .map_err(|error| ApiError::unprocessable_patch(&error))?,
        }
        Ok(object)
    }

    /// The patched value where no schema applies (Scale).
    pub(crate) fn apply_plainly(&self, current: &Value) -> Result<Value, ApiError> {
        let mut object = current.clone();
        match self {
            Self::Json(patch) => json_patch::patch(&mut object, patch)
                .map_err(|error| ApiError::unprocessable_patch(&error.to_string()))?,
            Self::Merge(patch) | Self::Strategic(patch) | Self::Apply(patch) => {
                json_patch::merge(&mut object, &patch.object);
            }
        }
        Ok(object)
    }
}

impl std::fmt::Display for Patch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Json(patch) => patch.fmt(f),
            Self::Merge(patch) | Self::Strategic(patch) | Self::Apply(patch) => patch.object.fmt(f),
        }
    }
}
