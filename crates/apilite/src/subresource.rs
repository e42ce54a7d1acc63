//! Subresources other than status: scale, binding, eviction, finalize, log.

use http::Response;

use crate::core::Core;
use crate::error::ApiError;
use crate::http::Incoming;
use crate::route::Target;
use crate::server::Body;

pub(crate) fn answer(
    _core: &Core,
    _target: &Target,
    _subresource: &str,
    _incoming: &Incoming,
) -> Result<Response<Body>, ApiError> {
    Err(ApiError::no_such_path())
}
