//! One operator leads, by a Lease of coordination.k8s.io, and what it is about to give away is in that Lease.
//!
//! Times and steps are those of client-go's leader election: who wants to lead
//! watches the Lease with its own clock and takes it when the holder has not
//! renewed it for the lease's duration; the holder stops writing well before.
//! That alone is no fence: a leader may be paused between looking at its clock
//! and writing, and wake up when another leads. So every grant goes through
//! the Lease too. Before NodeNetworks are written, the leader notes in an
//! annotation of the Lease which blocks it is about to write for whom, with the
//! resource version that it knows. Either that succeeds before another takes
//! the Lease, who then finds the note and honours it, or it fails, and nothing
//! is written. Who takes the Lease lists all objects afterwards: what is no
//! longer noted is there.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client, ResourceExt};
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// The Lease's name.
pub(crate) const NAME: &str = "weft-operator";

/// Blocks that belong to somebody although no NodeNetwork shows it yet, or any more.
const NOTE: &str = "weft.dev/granting";

/// Nobody else takes a Lease that was renewed within this time.
const DURATION: Duration = Duration::from_secs(15);

/// A leader that could not renew for this long stops writing.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);

/// Between two renewals, and two looks at somebody else's Lease.
const RETRY: Duration = Duration::from_secs(2);

/// Blocks by pool and the UID of their node, which no NodeNetwork shows.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Note(pub(crate) BTreeMap<String, BTreeMap<String, BTreeSet<String>>>);

/// Somebody who wants to lead.
pub(crate) struct Candidate {
    api: Api<Lease>,
    identity: String,
    /// Takes the Lease at once, whoever holds it.
    unasked: bool,
}

/// The Lease is held, or was until a moment ago.
pub(crate) struct Leadership {
    api: Api<Lease>,
    identity: String,
    held: tokio::sync::Mutex<Held>,
    until: Mutex<Instant>,
}

struct Held {
    /// As the API server answered last.
    lease: Lease,
    /// What it should say from the next renewal on.
    note: Note,
}

/// Why a note could not be made: nothing that it names may be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LeaseError {
    #[error("{0} holds the Lease")]
    Lost(String),
    #[error("the Lease was not renewed in time")]
    Late,
    #[error(transparent)]
    Api(#[from] kube::Error),
}

// === impl Note ===

impl Note {
    pub(crate) fn add(&mut self, pool: &str, uid: &str, block: String) {
        let nodes = self.0.entry(pool.to_owned()).or_default();
        nodes.entry(uid.to_owned()).or_default().insert(block);
    }

    /// All of it: pool, UID, block.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str, &str)> {
        self.0.iter().flat_map(|(pool, nodes)| {
            nodes
                .iter()
                .flat_map(move |(uid, blocks)| blocks.iter().map(move |block| (&**pool, &**uid, &**block)))
        })
    }

    fn covers(&self, other: &Self) -> bool {
        other.iter().all(|(pool, uid, block)| {
            let blocks = self.0.get(pool).and_then(|nodes| nodes.get(uid));
            blocks.is_some_and(|blocks| blocks.contains(block))
        })
    }
}

// === impl Candidate ===

impl Candidate {
    /// With `unasked` the Lease is taken at once, also from a holder that is alive: its writes fail from then on.
    pub(crate) fn new(client: Client, namespace: &str, identity: String, unasked: bool) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            identity,
            unasked,
        }
    }

    pub(crate) fn identity(&self) -> &str {
        &self.identity
    }

    /// Waits until the Lease is this one's. Others that hold it are told to `waiting`, once each; so are errors.
    pub(crate) async fn acquire(&self, waiting: impl Fn(&str)) -> Leadership {
        let mut seen: Option<(String, Instant)> = None;
        let mut told = String::new();
        loop {
            let found = match timeout(RENEW_DEADLINE, self.try_acquire(&mut seen)).await {
                Ok(Ok(Ok(leadership))) => return leadership,
                Ok(Ok(Err(holder))) => format!("{holder} leads"),
                Ok(Err(error)) => format!("cannot read or take Lease {NAME}: {error}"),
                Err(_) => format!(
                    "no answer about Lease {NAME} within {} s",
                    RENEW_DEADLINE.as_secs()
                ),
            };
            if found != told {
                waiting(&found);
                told = found;
            }
            // Two that wait should not try at the same moment for ever.
            sleep(RETRY.mul_f64(1.0 + 1.2 * random())).await;
        }
    }

    /// The Lease, or who holds it.
    async fn try_acquire(
        &self,
        seen: &mut Option<(String, Instant)>,
    ) -> Result<Result<Leadership, String>, kube::Error> {
        let now = Instant::now();
        let post = PostParams::default();
        let taken = match self.api.get_opt(NAME).await? {
            None => self.api.create(&post, &self.claimed(Lease::default())).await,
            Some(lease) => {
                let spec = lease.spec.clone().unwrap_or_default();
                let version = lease.resource_version().unwrap_or_default();
                let since = match seen {
                    Some((known, since)) if *known == version => *since,
                    _ => seen.insert((version, now)).1,
                };
                let seconds = spec.lease_duration_seconds.unwrap_or_default();
                let duration = Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
                let holder = spec.holder_identity.unwrap_or_default();
                let free = holder.is_empty() || holder == self.identity || since + duration <= now;
                if !free && !self.unasked {
                    return Ok(Err(holder));
                }
                self.api.replace(NAME, &post, &self.claimed(lease)).await
            }
        };
        match taken {
            Ok(lease) => Ok(Ok(Leadership {
                api: self.api.clone(),
                identity: self.identity.clone(),
                held: tokio::sync::Mutex::new(Held {
                    note: read_note(&lease),
                    lease,
                }),
                until: Mutex::new(now + RENEW_DEADLINE),
            })),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(Err("somebody else".to_owned())),
            Err(error) => Err(error),
        }
    }

    fn claimed(&self, mut lease: Lease) -> Lease {
        let now = Some(MicroTime(Timestamp::now()));
        lease.metadata = ObjectMeta {
            name: Some(NAME.to_owned()),
            ..lease.metadata
        };
        let spec = lease.spec.get_or_insert_default();
        spec.lease_transitions = Some(spec.lease_transitions.map_or(0, |count| count.saturating_add(1)));
        spec.holder_identity = Some(self.identity.clone());
        spec.lease_duration_seconds = Some(seconds(DURATION));
        spec.acquire_time = now.clone();
        spec.renew_time = now;
        lease
    }
}

// === impl Leadership ===

impl Leadership {
    /// Whether writes may still be made: another can't take the Lease before this has turned false.
    pub(crate) fn leads(&self) -> bool {
        Instant::now() < self.until()
    }

    /// What was noted when the Lease was taken, or since.
    pub(crate) async fn noted(&self) -> Note {
        self.held.lock().await.note.clone()
    }

    /// Renews the Lease as long as that works. Ends with the reason why it doesn't.
    pub(crate) async fn keep(&self) -> LeaseError {
        loop {
            sleep(RETRY).await;
            match timeout_at(self.until(), async {
                self.renew(&mut *self.held.lock().await).await
            })
            .await
            {
                Ok(Ok(())) => {}
                Ok(Err(LeaseError::Api(error))) => {
                    tracing::warn!(%error, "could not renew Lease {NAME}, trying again");
                }
                Ok(Err(error)) => return error,
                Err(_) => return LeaseError::Late,
            }
            if !self.leads() {
                return LeaseError::Late;
            }
        }
    }

    /// Makes sure that whoever leads next knows of `note`. What the last note said beyond that is forgotten with the
    /// next renewal.
    ///
    /// # Errors
    /// Somebody else leads, or it is not sure that nobody does: nothing may be written.
    pub(crate) async fn note(&self, note: Note) -> Result<(), LeaseError> {
        timeout_at(self.until(), async {
            let mut held = self.held.lock().await;
            let covered = read_note(&held.lease).covers(&note);
            held.note = note;
            if covered {
                Ok(())
            } else {
                self.renew(&mut held).await
            }
        })
        .await
        .unwrap_or(Err(LeaseError::Late))
    }

    /// Lets go, so that another need not wait. What is noted stays.
    pub(crate) async fn release(&self) -> Result<(), LeaseError> {
        let mut held = self.held.lock().await;
        if !self.leads() {
            return Err(LeaseError::Late);
        }
        let mut released = held.noted();
        let spec = released.spec.get_or_insert_default();
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        held.lease = self.api.replace(NAME, &PostParams::default(), &released).await?;
        Ok(())
    }

    fn until(&self) -> Instant {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn renew(&self, held: &mut Held) -> Result<(), LeaseError> {
        loop {
            // Taken before the request leaves, so that it ends here before it does for others.
            let sent = Instant::now();
            let mut renewed = held.noted();
            let spec = renewed.spec.get_or_insert_default();
            spec.renew_time = Some(MicroTime(Timestamp::now()));
            match self.api.replace(NAME, &PostParams::default(), &renewed).await {
                Ok(answer) => {
                    held.lease = answer;
                    *self.until.lock().unwrap_or_else(PoisonError::into_inner) = sent + RENEW_DEADLINE;
                    return Ok(());
                }
                // Somebody wrote to the Lease: who took it, a person, or a renewal of ours whose answer got lost.
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
                    let found = self.api.get_opt(NAME).await?;
                    let spec = found.as_ref().and_then(|lease| lease.spec.as_ref());
                    let holder = spec.and_then(|spec| spec.holder_identity.clone());
                    match found {
                        Some(found) if holder.as_ref() == Some(&self.identity) => held.lease = found,
                        _ => return Err(LeaseError::Lost(holder.unwrap_or_else(|| "nobody".to_owned()))),
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

// === impl Held ===

impl Held {
    /// The Lease as it should be.
    fn noted(&self) -> Lease {
        let mut lease = self.lease.clone();
        if self.note.0.is_empty() {
            lease.annotations_mut().remove(NOTE);
        } else {
            let text = serde_json::to_string(&self.note).unwrap_or_default();
            lease.annotations_mut().insert(NOTE.to_owned(), text);
        }
        lease
    }
}

impl fmt::Debug for Leadership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leadership")
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

fn read_note(lease: &Lease) -> Note {
    let Some(text) = lease.annotations().get(NOTE) else {
        return Note::default();
    };
    serde_json::from_str(text).unwrap_or_else(|error| {
        tracing::error!(%error, text, "annotation {NOTE} of Lease {NAME} is none, ignoring it");
        Note::default()
    })
}

/// From 0 to 1.
fn random() -> f64 {
    f64::from(uuid::Uuid::new_v4().as_bytes()[0]) / 255.0
}

fn seconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_secs()).unwrap_or(i32::MAX)
}

#[cfg(test)]
#[path = "lease_tests.rs"]
pub(crate) mod tests;
