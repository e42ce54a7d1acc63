//! What the API's own semantics need of a control plane's controllers: the default namespaces, the
//! emptying of deleted namespaces, garbage collection by owner references.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::core::Core;
use crate::decode::Decoded;
use crate::registry::{Resource, Shelf};
use crate::remove::{DeleteOptions, FOREGROUND_FINALIZER, ORPHAN_FINALIZER, Propagation};
use crate::route::Target;
use crate::store::{Change, Key, Range, Stored};
use crate::write::{Endpoint, WriteOptions};

const DEFAULT_NAMESPACES: &[&str] = &["default", "kube-node-lease", "kube-public", "kube-system"];

/// A second look at namespaces that wait for somebody else's finalizers or for a kubelet.
const RESYNC: Duration = Duration::from_secs(1);

// === impl Core ===

impl Core {
    pub(crate) fn start_housekeeping(self: &Arc<Self>) {
        let namespaces = self.namespaces();
        for name in DEFAULT_NAMESPACES {
            let target = Target {
                resource: Arc::clone(&namespaces),
                namespace: String::new(),
                name: None,
                subresource: None,
            };
            let body = Decoded {
                object: json!({ "metadata": { "name": name } }),
                duplicates: Vec::new(),
            };
            self.create(&target, body, &WriteOptions::internal())
                .expect("the name is free and valid");
        }
        // A weak handle: the server ends when its last handle goes, not when this task does.
        let core = Arc::downgrade(self);
        let closing = self.closing.clone();
        let mut changes = self.store.subscribe_all();
        self.tasks.spawn(async move {
            loop {
                let Some(core) = core.upgrade() else { return };
                changes.borrow_and_update();
                for (shelf, change) in core.store.take_pending() {
                    core.collect(&shelf, &change);
                }
                core.empty_namespaces();
                drop(core);
                tokio::select! {
                    () = closing.cancelled() => return,
                    changed = changes.changed() => if changed.is_err() { return },
                    () = tokio::time::sleep(RESYNC) => {}
                }
            }
        });
    }

    fn namespaces(&self) -> Arc<Resource> {
        Arc::clone(
            self.registry
                .catalog()
                .find("", "v1", "namespaces")
                .expect("built in"),
        )
    }

    /// The resource of a shelf, in whatever version it is served.
    fn resource_of(&self, shelf: &Shelf) -> Option<Arc<Resource>> {
        let catalog = self.registry.catalog();
        let mut found = catalog.all().filter(|resource| resource.shelf == *shelf);
        found.find(|resource| resource.shows_as_stored()).cloned()
    }

    fn target(&self, shelf: &Shelf, stored: &Stored) -> Option<Target> {
        Some(Target {
            resource: self.resource_of(shelf)?,
            namespace: stored.key.namespace.to_string(),
            name: Some(stored.key.name.to_string()),
            subresource: None,
        })
    }

    /// Deletes what is in terminating namespaces, then the namespaces.
    fn empty_namespaces(&self) {
        let namespaces = self.namespaces();
        let terminating = |stored: &Stored| {
            crate::selectable::value(&namespaces.shelf, stored, "status.phase") == Some("Terminating")
        };
        let Ok(page) = self.store.list(&namespaces.shelf, &Range::default(), terminating) else {
            return;
        };
        for namespace in page.items {
            if !self.empty_namespace(&namespace.key.name) {
                continue;
            }
            let Some(target) = self.target(&namespaces.shelf, &namespace) else {
                continue;
            };
            // Fails if somebody changed it meanwhile; the change brings us back.
            let _ = self.rewrite(&target, Endpoint::Whole, &WriteOptions::internal(), |current| {
                let mut object = current.clone();
                object["spec"]["finalizers"] = json!([]);
                Ok(object)
            });
        }
    }

    /// Whether nothing is left.
    fn empty_namespace(&self, namespace: &str) -> bool {
        let mut empty = true;
        let options = DeleteOptions {
            propagation: Some(Propagation::Background),
            ..DeleteOptions::default()
        };
        let catalog = self.registry.catalog();
        for resource in catalog.all().filter(|r| r.namespaced && r.shows_as_stored()) {
            let range = Range {
                namespace,
                ..Range::default()
            };
            let Ok(page) = self.store.list(&resource.shelf, &range, |_| true) else {
                continue;
            };
            for stored in page.items {
                let Some(target) = self.target(&resource.shelf, &stored) else {
                    continue;
                };
                if !stored.terminating {
                    // A conflict is retried on the next round.
                    let _ = self.delete(&target, &options);
                }
            }
            empty &= self.store.is_empty(&resource.shelf, namespace);
        }
        empty
    }

    /// Garbage collection after one change.
    fn collect(&self, shelf: &Shelf, change: &Change) {
        if change.deleted {
            for (shelf, dependent) in self.store.dependents(&change.after.uid) {
                self.settle_dependent(&shelf, &dependent);
            }
            // An owner that waits for its dependents may be waiting for this one.
            let object = change.after.value();
            for owner in object["metadata"]["ownerReferences"]
                .as_array()
                .into_iter()
                .flatten()
            {
                self.settle_owner(owner, &change.after.key.namespace);
            }
            return;
        }
        let Some(current) = self.store.get(shelf, &change.after.key) else {
            return;
        };
        if current.uid != change.after.uid {
            return;
        }
        if !current.owners.is_empty() {
            self.settle_dependent(shelf, &current);
        }
        self.settle_terminating(shelf, &current);
    }

    /// Deletes an object whose owners are all gone; drops references to those that are.
    fn settle_dependent(&self, shelf: &Shelf, stored: &Stored) {
        if stored.terminating {
            return;
        }
        let object = stored.value();
        let owners: Vec<Value> = object["metadata"]["ownerReferences"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        if owners.is_empty() {
            return;
        }
        let namespace = &stored.key.namespace;
        let mut waiting = false;
        let solid: Vec<&Value> = owners
            .iter()
            .filter(|owner| match self.owner(owner, namespace) {
                Owner::Gone => false,
                // Deleted in the foreground: it waits for this object to go first.
                Owner::WaitsForDependents => {
                    waiting |= owner["blockOwnerDeletion"] == true;
                    false
                }
                Owner::Lives => true,
            })
            .collect();
        let Some(target) = self.target(shelf, stored) else {
            return;
        };
        if solid.is_empty() {
            let finalizers = object["metadata"]["finalizers"]
                .as_array()
                .map(Vec::as_slice)
                .unwrap_or_default();
            let propagation = if finalizers.iter().any(|f| f == ORPHAN_FINALIZER) {
                Propagation::Orphan
            } else if waiting && !self.store.dependents(&stored.uid).is_empty() {
                Propagation::Foreground
            } else {
                Propagation::Background
            };
            let options = DeleteOptions {
                propagation: Some(propagation),
                uid: Some(stored.uid.to_string()),
                ..DeleteOptions::default()
            };
            let _ = self.delete(&target, &options);
        } else if solid.len() < owners.len() {
            let kept: Vec<Value> = solid.into_iter().cloned().collect();
            let _ = self.rewrite(&target, Endpoint::Whole, &WriteOptions::internal(), |current| {
                let mut object = current.clone();
                object["metadata"]["ownerReferences"] = kept.clone().into();
                Ok(object)
            });
        }
    }

    fn owner(&self, reference: &Value, namespace: &str) -> Owner {
        let text = |field: &str| reference[field].as_str().unwrap_or_default();
        let (group, version) = text("apiVersion")
            .split_once('/')
            .unwrap_or(("", text("apiVersion")));
        let catalog = self.registry.catalog();
        let resource = catalog
            .find_kind(group, version, text("kind"))
            .or_else(|| catalog.find_group_kind(group, text("kind")));
        // The real collector can't judge owners of kinds it doesn't know and leaves them alone.
        let Some(resource) = resource else {
            return Owner::Lives;
        };
        let namespace = if resource.namespaced { namespace } else { "" };
        let Some(owner) = self
            .store
            .get(&resource.shelf, &Key::new(namespace, text("name")))
        else {
            return Owner::Gone;
        };
        if *owner.uid != *text("uid") {
            return Owner::Gone;
        }
        let metadata = &owner.value()["metadata"];
        let has_finalizer = |name: &str| {
            metadata["finalizers"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|finalizer| finalizer == name)
        };
        if metadata["deletionTimestamp"].is_string() && has_finalizer(FOREGROUND_FINALIZER) {
            Owner::WaitsForDependents
        } else {
            Owner::Lives
        }
    }

    fn settle_owner(&self, reference: &Value, namespace: &str) {
        let text = |field: &str| reference[field].as_str().unwrap_or_default();
        let (group, _) = text("apiVersion").split_once('/').unwrap_or(("", ""));
        let catalog = self.registry.catalog();
        let Some(resource) = catalog.find_group_kind(group, text("kind")) else {
            return;
        };
        let namespace = if resource.namespaced { namespace } else { "" };
        if let Some(owner) = self
            .store
            .get(&resource.shelf, &Key::new(namespace, text("name")))
        {
            self.settle_terminating(&resource.shelf, &owner);
        }
    }

    /// Carries out the policies that deletion has noted as finalizers.
    fn settle_terminating(&self, shelf: &Shelf, stored: &Stored) {
        if !stored.terminating {
            return;
        }
        let object = stored.value();
        let finalizers = object["metadata"]["finalizers"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        let has = |name: &str| finalizers.iter().any(|finalizer| finalizer == name);
        let done = if has(ORPHAN_FINALIZER) {
            for (shelf, dependent) in self.store.dependents(&stored.uid) {
                self.orphan(&shelf, &dependent, &stored.uid);
            }
            ORPHAN_FINALIZER
        } else if has(FOREGROUND_FINALIZER) {
            let mut blocked = false;
            for (shelf, dependent) in self.store.dependents(&stored.uid) {
                self.settle_dependent(&shelf, &dependent);
                let left = self
                    .store
                    .get(&shelf, &dependent.key)
                    .map(|stored| stored.value());
                blocked |= left.is_some_and(|left| {
                    let references = left["metadata"]["ownerReferences"]
                        .as_array()
                        .cloned()
                        .unwrap_or_default();
                    references
                        .iter()
                        .any(|r| r["uid"] == *stored.uid && r["blockOwnerDeletion"] == true)
                });
            }
            if blocked {
                return;
            }
            FOREGROUND_FINALIZER
        } else {
            return;
        };
        let Some(target) = self.target(shelf, stored) else {
            return;
        };
        let _ = self.rewrite(&target, Endpoint::Whole, &WriteOptions::internal(), |current| {
            let mut object = current.clone();
            if let Some(finalizers) = object["metadata"]["finalizers"].as_array_mut() {
                finalizers.retain(|finalizer| finalizer != done);
            }
            Ok(object)
        });
    }

    fn orphan(&self, shelf: &Shelf, dependent: &Stored, uid: &str) {
        let Some(target) = self.target(shelf, dependent) else {
            return;
        };
        let _ = self.rewrite(&target, Endpoint::Whole, &WriteOptions::internal(), |current| {
            let mut object = current.clone();
            if let Some(owners) = object["metadata"]["ownerReferences"].as_array_mut() {
                owners.retain(|owner| owner["uid"] != uid);
                if owners.is_empty()
                    && let Some(metadata) = object["metadata"].as_object_mut()
                {
                    metadata.remove("ownerReferences");
                }
            }
            Ok(object)
        });
    }
}

enum Owner {
    Lives,
    Gone,
    WaitsForDependents,
}
