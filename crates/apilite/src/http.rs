//! Requests to operations: routing, content negotiation, rendering.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use serde_json::{Value, json};

use crate::core::Core;
use crate::decode::{self, Encoding};
use crate::error::ApiError;
use crate::patch::Patch;
use crate::read::{self, Listing, Selection};
use crate::remove::DeleteOptions;
use crate::route::{Query, Route, Target};
use crate::server::Body;
use crate::table::{self, Shape, TableOptions};
use crate::write::{Endpoint, WriteOptions, Written};

/// What the real server takes by default (`--max-request-body-bytes`): 3 MiB.
const MAX_BODY: usize = 3 * 1024 * 1024;
const ACCEPTED: &str = "application/json, application/yaml";

/// What the client takes, and in which form.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Accept {
    pub(crate) shape: Shape,
    pub(crate) yaml: bool,
    /// `g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList`
    pub(crate) aggregated_discovery: bool,
}

pub(crate) struct Incoming {
    method: Method,
    headers: HeaderMap,
    query: Query,
    body: Bytes,
}

pub(crate) async fn answer<B>(core: &Arc<Core>, request: Request<B>) -> Response<Body>
where
    B: http_body::Body<Data = Bytes> + Send,
    B::Error: std::fmt::Display,
{
    let delay = core.faults.delay();
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    if core.faults.refusing() {
        let error = ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "ServiceUnavailable",
            "the server is currently unable to handle the request",
        );
        return failure(&error, &Query::default());
    }
    let (parts, body) = request.into_parts();
    let query = Query::parse(parts.uri.query().unwrap_or_default());
    // The error of a limited body is boxed and may not be Send across an await, hence the text.
    let body = Limited::new(body.map_err(|error| error.to_string()), MAX_BODY)
        .collect()
        .await;
    let body = match body {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            let error = ApiError::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "RequestEntityTooLarge",
                format!("Request entity too large: limit is {MAX_BODY}"),
            );
            return failure(&error, &query);
        }
        Err(error) => {
            return failure(
                &ApiError::bad_request(format!("reading the body: {error}")),
                &query,
            );
        }
    };
    let incoming = Incoming {
        method: parts.method,
        headers: parts.headers,
        query,
        body,
    };
    let catalog = core.registry.catalog();
    let routed = Route::parse(parts.uri.path(), &catalog);
    let answered = match routed {
        Ok(Route::Target(target)) => operate(core, &target, &incoming).await,
        Ok(route) => crate::discovery::answer(core, &route, incoming.headers()),
        Err(error) => Err(error),
    };
    answered.unwrap_or_else(|error| failure(&error, &incoming.query))
}

async fn operate(core: &Arc<Core>, target: &Target, incoming: &Incoming) -> Result<Response<Body>, ApiError> {
    let query = &incoming.query;
    if let Some(subresource) = target.subresource.as_deref()
        && !(subresource == "status" && target.resource.status)
    {
        return crate::subresource::answer(core, target, subresource, incoming);
    }
    let endpoint = if target.subresource.is_some() {
        Endpoint::Status
    } else {
        Endpoint::Main
    };
    let options = || WriteOptions::parse(query, incoming.header(header::USER_AGENT));
    match (&incoming.method, target.name.is_some()) {
        (&Method::GET, false) => {
            let selection = Selection::parse(target, query)?;
            if query.flag("watch") {
                return watch(core, selection, incoming).await;
            }
            let accept = incoming.accept()?;
            let listing = core.list(&selection, query).await?;
            Ok(list_response(&selection, listing, &accept))
        }
        (&Method::GET, true) => {
            if query.flag("watch") {
                let name = target.name.as_deref().unwrap_or_default();
                let selection = Selection::parse(target, query)?.only(name)?;
                return watch(core, selection, incoming).await;
            }
            let accept = incoming.accept()?;
            if let Some(revision) = query.get("resourceVersion") {
                core.wait_for(read::parse_revision(revision)?).await?;
            }
            let stored = core.get(target)?;
            if accept.shape == Shape::Full && !accept.yaml {
                return Ok(json_response(
                    StatusCode::OK,
                    read::view(&target.resource, &stored),
                ));
            }
            Ok(render(
                target,
                StatusCode::OK,
                read::view_value(&target.resource, &stored),
                &accept,
            ))
        }
        (&Method::POST, false) => {
            let body = incoming.decode()?;
            written(target, core.create(target, body, &options()?)?, incoming)
        }
        (&Method::PUT, true) => {
            let body = incoming.decode()?;
            written(
                target,
                core.update(target, endpoint, body, &options()?)?,
                incoming,
            )
        }
        (&Method::PATCH, true) => {
            let patch = Patch::parse(
                &target.resource,
                incoming.header(header::CONTENT_TYPE),
                &incoming.body,
            )?;
            written(
                target,
                core.patch(target, endpoint, &patch, &options()?)?,
                incoming,
            )
        }
        (&Method::DELETE, true) if endpoint == Endpoint::Main => {
            let body = incoming.decode_optional()?;
            let options = DeleteOptions::parse(body.as_ref(), query)?;
            written(target, core.delete(target, &options)?, incoming)
        }
        (&Method::DELETE, false) => {
            let body = incoming.decode_optional()?;
            let options = DeleteOptions::parse(body.as_ref(), query)?;
            let selection = Selection::parse(target, query)?;
            let list = core.delete_collection(&selection, &options)?;
            Ok(json_response(StatusCode::OK, to_bytes(&list)))
        }
        _ => Err(ApiError::method_not_allowed()),
    }
}

async fn watch(
    core: &Arc<Core>,
    selection: Selection,
    incoming: &Incoming,
) -> Result<Response<Body>, ApiError> {
    let shape = incoming.accept()?.shape;
    let stream = crate::watch::start(core, selection, shape, &incoming.query).await?;
    let frames = stream.map(|bytes| Ok::<_, Infallible>(Frame::data(bytes)));
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

fn list_response(selection: &Selection, listing: Listing, accept: &Accept) -> Response<Body> {
    let resource = &selection.resource;
    let mut metadata = json!({ "resourceVersion": listing.page.revision.to_string() });
    if let Some(token) = &listing.continuation {
        metadata["continue"] = Value::from(token.as_str());
    }
    if let Some(remaining) = listing.remaining {
        metadata["remainingItemCount"] = Value::from(remaining);
    }
    let items = listing.page.items;
    if accept.shape == Shape::Full && !accept.yaml {
        let head = format!(
            "{{\"kind\":{},\"apiVersion\":{},\"metadata\":{metadata},\"items\":[",
            Value::from(resource.list_kind.as_str()),
            Value::from(resource.api_version()),
        );
        let shared = Arc::clone(resource);
        let items = items.into_iter().enumerate().flat_map(move |(i, stored)| {
            let comma = (i > 0).then(|| Bytes::from_static(b","));
            comma.into_iter().chain([read::view(&shared, &stored)])
        });
        let pieces = std::iter::once(Bytes::from(head))
            .chain(items)
            .chain([Bytes::from_static(b"]}\n")]);
        return stream_response(Batched(pieces));
    }
    let objects = items.iter().map(|stored| read::view_value(resource, stored));
    let body = match &accept.shape {
        Shape::Table(options) => {
            let objects: Vec<Value> = objects.collect();
            let mut table = table::render(resource, &objects, *options);
            table["metadata"] = metadata;
            table
        }
        Shape::Metadata => {
            let items: Vec<Value> = objects.map(|object| read::metadata_only(&object)).collect();
            json!({
                "kind": "PartialObjectMetadataList",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": metadata,
                "items": items,
            })
        }
        Shape::Full => json!({
            "kind": resource.list_kind,
            "apiVersion": resource.api_version(),
            "metadata": metadata,
            "items": objects.collect::<Vec<Value>>(),
        }),
    };
    encode(StatusCode::OK, &body, accept.yaml)
}

/// Joins small pieces, so that a long list isn't a frame per object.
struct Batched<I>(I);

// === impl Batched ===

impl<I: Iterator<Item = Bytes>> Iterator for Batched<I> {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        const ENOUGH: usize = 64 * 1024;
        let mut batch = bytes::BytesMut::new();
        for piece in self.0.by_ref() {
            batch.extend_from_slice(&piece);
            if batch.len() >= ENOUGH {
                break;
            }
        }
        (!batch.is_empty()).then(|| batch.freeze())
    }
}

fn stream_response(pieces: impl Iterator<Item = Bytes> + Send + 'static) -> Response<Body> {
    let frames = stream::iter(pieces.map(|bytes| Ok::<_, Infallible>(Frame::data(bytes))));
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The answer to a write, in the form that was asked for.
pub(crate) fn written(
    target: &Target,
    written: Written,
    incoming: &Incoming,
) -> Result<Response<Body>, ApiError> {
    let accept = incoming.accept()?;
    let mut response = if written.object["kind"] == "Status" {
        encode(written.status, &written.object, accept.yaml)
    } else {
        render(target, written.status, written.object, &accept)
    };
    for warning in &written.warnings {
        let escaped = warning.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{escaped}\"")) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
    Ok(response)
}

fn render(target: &Target, status: StatusCode, object: Value, accept: &Accept) -> Response<Body> {
    let body = match &accept.shape {
        Shape::Full => object,
        Shape::Metadata => read::metadata_only(&object),
        Shape::Table(options) => {
            let revision = object["metadata"]["resourceVersion"].clone();
            let mut table = table::render(&target.resource, &[object], *options);
            table["metadata"] = json!({ "resourceVersion": revision });
            table
        }
    };
    encode(status, &body, accept.yaml)
}

pub(crate) fn encode(status: StatusCode, body: &Value, yaml: bool) -> Response<Body> {
    if yaml && let Ok(text) = serde_saphyr::to_string(body) {
        let mut response = json_response(status, text.into());
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/yaml"));
        return response;
    }
    json_response(status, to_bytes(body))
}

pub(crate) fn to_bytes(value: &Value) -> Bytes {
    serde_json::to_vec(value).expect("a Value serializes").into()
}

pub(crate) fn json_response(status: StatusCode, body: Bytes) -> Response<Body> {
    let mut response = Response::new(Full::new(body).boxed_unsync());
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn failure(error: &ApiError, query: &Query) -> Response<Body> {
    let mut status = error.to_json();
    status["metadata"] = read::status_metadata(error, query);
    let mut response = json_response(error.code, to_bytes(&status));
    if let Some(seconds) = error
        .details
        .as_ref()
        .and_then(|details| details.retry_after_seconds)
    {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

// === impl Incoming ===

impl Incoming {
    pub(crate) fn method(&self) -> &Method {
        &self.method
    }

    pub(crate) fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    pub(crate) fn query(&self) -> &Query {
        &self.query
    }

    pub(crate) fn body(&self) -> &Bytes {
        &self.body
    }

    pub(crate) fn header(&self, name: header::HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    pub(crate) fn accept(&self) -> Result<Accept, ApiError> {
        let mut accept = Accept::of(&self.headers)?;
        if let Shape::Table(options) = &mut accept.shape {
            *options = TableOptions::parse(self.query.get("includeObject"));
        }
        Ok(accept)
    }

    pub(crate) fn decode(&self) -> Result<decode::Decoded, ApiError> {
        decode::parse(&self.body, Encoding::of(self.header(header::CONTENT_TYPE))?)
    }

    fn decode_optional(&self) -> Result<Option<Value>, ApiError> {
        if self.body.is_empty() {
            return Ok(None);
        }
        self.decode().map(|decoded| Some(decoded.object))
    }
}

// === impl Accept ===

impl Accept {
    /// The first form of the Accept header that this server speaks.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Self, ApiError> {
        let plain = Self {
            shape: Shape::Full,
            yaml: false,
            aggregated_discovery: false,
        };
        let mut offered = false;
        for value in headers.get_all(header::ACCEPT) {
            for clause in value.to_str().unwrap_or_default().split(',') {
                let mut parts = clause.split(';').map(str::trim);
                let media = parts.next().unwrap_or_default();
                if media.is_empty() {
                    continue;
                }
                offered = true;
                let yaml = match media {
                    "application/json" | "application/*" | "*/*" => false,
                    "application/yaml" => true,
                    _ => continue,
                };
                let mut accept = Self {
                    yaml,
                    ..plain.clone()
                };
                let (mut group, mut version, mut kind) = ("", "", "");
                for part in parts {
                    match part.split_once('=') {
                        Some(("g", value)) => group = value,
                        Some(("v", value)) => version = value,
                        Some(("as", value)) => kind = value,
                        _ => {}
                    }
                }
                match (group, version, kind) {
                    (_, _, "") => return Ok(accept),
                    ("meta.k8s.io", "v1", "Table") => {
                        accept.shape = Shape::Table(TableOptions::default());
                        return Ok(accept);
                    }
                    ("meta.k8s.io", "v1", "PartialObjectMetadata" | "PartialObjectMetadataList") => {
                        accept.shape = Shape::Metadata;
                        return Ok(accept);
                    }
                    ("apidiscovery.k8s.io", "v2", "APIGroupDiscoveryList") => {
                        accept.aggregated_discovery = true;
                        return Ok(accept);
                    }
                    _ => {}
                }
            }
        }
        if offered {
            Err(ApiError::not_acceptable(ACCEPTED))
        } else {
            Ok(plain)
        }
    }
}
