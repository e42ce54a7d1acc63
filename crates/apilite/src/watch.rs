//! Watches: a stream of newline-separated JSON events, fed from the store's ring.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures::Stream;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::core::Core;
use crate::error::ApiError;
use crate::faults::Interruption;
use crate::read::{self, Selection, Wanted, list_options_error};
use crate::route::Query;
use crate::store::{Change, Poll, Range, Stored};
use crate::table::{self, Shape};

/// Without `timeoutSeconds` a watch lasts this long (the real server: 30 to 60 minutes).
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(45 * 60);
/// Initial objects are sent in pieces of about this many bytes.
const CHUNK: usize = 64 * 1024;

struct Watch {
    core: Arc<Core>,
    selection: Selection,
    shape: Shape,
    /// Objects that exist at the start, still to be sent.
    initial: VecDeque<Arc<Stored>>,
    /// Send the bookmark that says the initial objects are complete.
    announce_initial_end: bool,
    bookmarks: bool,
    /// Everything up to this revision was sent or didn't match.
    position: u64,
    deadline: Instant,
    next_bookmark: Instant,
    changes: tokio::sync::watch::Receiver<u64>,
    interruptions: tokio::sync::watch::Receiver<(u64, Interruption)>,
    /// The table's columns go out with its first event only.
    columns_sent: bool,
    /// An error to send as the last event.
    failure: Option<ApiError>,
    done: bool,
}

/// Starts a watch; the stream ends at its timeout, when it falls behind the window, or at shutdown.
pub(crate) async fn start(
    core: &Arc<Core>,
    selection: Selection,
    shape: Shape,
    query: &Query,
) -> Result<impl Stream<Item = Bytes> + use<>, ApiError> {
    let wanted = Wanted::parse(query)?;
    let bookmarks = query.flag("allowWatchBookmarks");
    let streaming_list = query.flag("sendInitialEvents");
    if query.has("sendInitialEvents") && query.get("resourceVersionMatch") != Some("NotOlderThan") {
        return Err(list_options_error(
            "sendInitialEvents: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            "sendInitialEvents",
        ));
    }
    if !query.has("sendInitialEvents") && query.get("resourceVersionMatch").is_some() {
        return Err(list_options_error(
            "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            "resourceVersionMatch",
        ));
    }
    let timeout = query
        .number::<u64>("timeoutSeconds")?
        .filter(|seconds| *seconds > 0);
    let timeout = timeout.map_or(DEFAULT_TIMEOUT, Duration::from_secs);

    // Subscribed before the state is read, so that nothing falls in between.
    let changes = core.store.subscribe(&selection.resource.shelf);
    let interruptions = core.faults.interruptions();
    let from_state = match wanted {
        Wanted::Newest => streaming_list || !query.has("sendInitialEvents"),
        Wanted::AtLeast(0) => true,
        Wanted::AtLeast(revision) => {
            core.wait_for(revision).await?;
            streaming_list
        }
        Wanted::Exactly(_) => false,
    };
    let (initial, position) = if from_state {
        let range = Range {
            namespace: &selection.namespace,
            ..Range::default()
        };
        let page = core
            .store
            .list(&selection.resource.shelf, &range, |stored| {
                selection.matches(stored)
            })
            .map_err(|_| ApiError::expired("too old resource version"))?;
        (page.items.into(), page.revision)
    } else {
        match wanted {
            Wanted::AtLeast(revision @ 1..) | Wanted::Exactly(revision) => (VecDeque::new(), revision),
            Wanted::AtLeast(0) | Wanted::Newest => (VecDeque::new(), core.store.revision()),
        }
    };
    let now = Instant::now();
    let watch = Watch {
        core: Arc::clone(core),
        shape,
        initial,
        announce_initial_end: streaming_list && bookmarks,
        bookmarks,
        position,
        deadline: now + timeout,
        next_bookmark: now + core.bookmark_interval,
        changes,
        interruptions,
        columns_sent: false,
        failure: None,
        done: false,
        selection,
    };
    Ok(futures::stream::unfold(watch, |mut watch| async move {
        let bytes = watch.next().await?;
        Some((bytes, watch))
    }))
}

// === impl Watch ===

impl Watch {
    /// The next piece of the body; None ends it.
    async fn next(&mut self) -> Option<Bytes> {
        if self.done {
            return None;
        }
        if !self.initial.is_empty() {
            return Some(self.initial_chunk());
        }
        if std::mem::take(&mut self.announce_initial_end) {
            return Some(self.bookmark(self.position, true));
        }
        loop {
            if let Some(error) = self.failure.take() {
                self.done = true;
                let mut out = BytesMut::new();
                write_event(&mut out, "ERROR", error.to_json().to_string().as_bytes());
                return Some(out.freeze());
            }
            self.changes.borrow_and_update();
            match self
                .core
                .store
                .changes(&self.selection.resource.shelf, self.position)
            {
                Poll::Changes(changes) => {
                    let mut out = BytesMut::new();
                    for change in &changes {
                        self.position = change.revision;
                        self.event(&mut out, change);
                    }
                    if !out.is_empty() {
                        return Some(out.freeze());
                    }
                    continue;
                }
                Poll::Idle(revision) => self.position = self.position.max(revision),
                Poll::Compacted { oldest } => {
                    self.failure = Some(ApiError::expired(format!(
                        "too old resource version: {} ({oldest})",
                        self.position
                    )));
                    continue;
                }
            }
            let wake = if self.bookmarks {
                self.deadline.min(self.next_bookmark)
            } else {
                self.deadline
            };
            tokio::select! {
                changed = self.changes.changed() => changed.ok()?,
                interrupted = self.interruptions.changed() => {
                    interrupted.ok()?;
                    match self.interruptions.borrow_and_update().1 {
                        Interruption::Cut => return None,
                        Interruption::Expire => self.failure = Some(ApiError::expired(
                            format!("too old resource version: {} ({})", self.position, self.core.store.revision()),
                        )),
                    }
                }
                () = self.core.closing.cancelled() => return None,
                () = tokio::time::sleep_until(wake) => {
                    let now = Instant::now();
                    if now >= self.deadline {
                        self.done = true;
                        // As the real server: a last bookmark, so that the client resumes cheaply.
                        return self.bookmarks.then(|| self.bookmark(self.position, false));
                    }
                    self.next_bookmark = now + self.core.bookmark_interval;
                    return Some(self.bookmark(self.position, false));
                }
            }
        }
    }

    fn initial_chunk(&mut self) -> Bytes {
        let mut out = BytesMut::new();
        while let Some(stored) = self.initial.pop_front() {
            self.object_event(&mut out, "ADDED", &stored);
            if out.len() >= CHUNK {
                break;
            }
        }
        out.freeze()
    }

    fn event(&mut self, out: &mut BytesMut, change: &Change) {
        let was = change
            .before
            .as_deref()
            .is_some_and(|stored| self.selection.matches(stored));
        let is = !change.deleted && self.selection.matches(&change.after);
        match (was, is) {
            (false, false) => {}
            (false, true) => self.object_event(out, "ADDED", &change.after),
            (true, true) => self.object_event(out, "MODIFIED", &change.after),
            (true, false) if change.deleted => self.object_event(out, "DELETED", &change.after),
            // It left the selection: the last state that matched, at the revision of the change.
            (true, false) => {
                let before = change.before.as_deref().expect("it matched");
                let mut object = read::view_value(&self.selection.resource, before);
                object["metadata"]["resourceVersion"] = Value::from(change.revision.to_string());
                self.value_event(out, "DELETED", object);
            }
        }
    }

    fn object_event(&mut self, out: &mut BytesMut, kind: &str, stored: &Stored) {
        if matches!(self.shape, Shape::Full) {
            write_event(out, kind, &read::view(&self.selection.resource, stored));
        } else {
            self.value_event(out, kind, read::view_value(&self.selection.resource, stored));
        }
    }

    fn value_event(&mut self, out: &mut BytesMut, kind: &str, object: Value) {
        let shaped = match &self.shape {
            Shape::Full => object,
            Shape::Metadata => read::metadata_only(&object),
            Shape::Table(options) => {
                let mut table = table::render(&self.selection.resource, &[object], *options);
                if std::mem::replace(&mut self.columns_sent, true) {
                    table["columnDefinitions"] = Value::Null;
                }
                table
            }
        };
        write_event(out, kind, shaped.to_string().as_bytes());
    }

    fn bookmark(&mut self, revision: u64, initial_end: bool) -> Bytes {
        let resource = &self.selection.resource;
        let mut metadata = json!({ "resourceVersion": revision.to_string(), "creationTimestamp": null });
        if initial_end {
            metadata["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
        }
        let object = match &self.shape {
            Shape::Full => {
                json!({ "kind": resource.kind, "apiVersion": resource.api_version(), "metadata": metadata })
            }
            Shape::Metadata => json!({
                "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
            }),
            Shape::Table(_) => {
                let object = json!({
                    "kind": resource.kind, "apiVersion": resource.api_version(), "metadata": metadata,
                });
                json!({
                    "kind": "Table",
                    "apiVersion": "meta.k8s.io/v1",
                    "metadata": { "resourceVersion": revision.to_string() },
                    "columnDefinitions": null,
                    "rows": [{ "cells": [], "object": object }],
                })
            }
        };
        let mut out = BytesMut::new();
        write_event(&mut out, "BOOKMARK", object.to_string().as_bytes());
        out.freeze()
    }
}

fn write_event(out: &mut BytesMut, kind: &str, object: &[u8]) {
    out.reserve(object.len() + 40);
    out.put_slice(b"{\"type\":\"");
    out.put_slice(kind.as_bytes());
    out.put_slice(b"\",\"object\":");
    out.put_slice(object);
    out.put_slice(b"}\n");
}
