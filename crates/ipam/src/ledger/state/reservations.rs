//! Reservations: what an ADD has before it is answered. They live in memory; the disk has what they become, or nothing.

use std::net::Ipv4Addr;

use weft_model::AttachmentKey;

use super::{Now, State, millis};
use crate::ledger::error::LedgerError;
use crate::ledger::record::{Attachment, Details, Entry};

// === impl State ===

impl State {
    /// See [`Ledger::reserve`](crate::Ledger::reserve).
    pub(in crate::ledger) fn reserve(
        &mut self,
        key: AttachmentKey,
        details: Details,
        now: &Now,
    ) -> Result<Ipv4Addr, LedgerError> {
        if let Some(&address) = self.by_key.get(&key) {
            return Err(LedgerError::Exists { key, address });
        }
        let address = match self.take_unused() {
            Some(address) => address,
            None => self.take_rested(now)?,
        };
        let attachment = Attachment {
            key: key.clone(),
            address,
            details,
            boot: now.moment.boot.clone(),
            created_ms: millis(now.wall),
        };
        self.by_key.insert(key, address);
        self.entries.insert(address, Entry::Reserved(attachment));
        Ok(address)
    }

    /// Has the record of a reservation written as what it becomes. It stays one until [`State::activate`].
    pub(in crate::ledger) fn record(&mut self, key: &AttachmentKey) -> Result<(), LedgerError> {
        let address = self.reservation(key)?.address;
        self.recorded.insert(address);
        self.dirty.addresses.insert(address);
        self.due += 1;
        Ok(())
    }

    /// Ends a reservation: of one whose record is on the disk, nothing is left to be written.
    pub(in crate::ledger) fn activate(&mut self, key: &AttachmentKey) -> Result<Attachment, LedgerError> {
        let attachment = self.reservation(key)?.clone();
        let (address, entry) = (attachment.address, Entry::Active(attachment.clone()));
        if self.recorded.remove(&address) {
            self.entries.insert(address, entry);
        } else {
            // The one that was written was released, and this is another.
            self.put(address, entry);
        }
        Ok(attachment)
    }

    fn reservation(&self, key: &AttachmentKey) -> Result<&Attachment, LedgerError> {
        let (address, entry) = self
            .get(key)
            .ok_or_else(|| LedgerError::NotFound { key: key.clone() })?;
        let state = match entry {
            Entry::Reserved(attachment) => return Ok(attachment),
            Entry::Active(_) => "active",
            Entry::Quarantined(_) => "quarantined",
            Entry::Released(_) => "released",
        };
        Err(LedgerError::NotReserved {
            key: key.clone(),
            address,
            state,
        })
    }

    /// Undoes a reservation as if it had never been. The disk may have a record of an earlier owner, whose rest is over;
    /// one of this reservation has to be gone before anybody else gets the address.
    pub(super) fn withdraw(&mut self, address: Ipv4Addr) {
        self.entries.remove(&address);
        self.dirty.addresses.insert(address);
        if self.recorded.remove(&address) {
            self.leaving.insert(address);
            self.due += 1;
        } else {
            self.offer(address);
        }
    }

    /// The reservations, for a state that is read from the disk.
    pub(in crate::ledger) fn in_flight(&self) -> Vec<Attachment> {
        let reserved = |entry: &Entry| match entry {
            Entry::Reserved(owner) => Some(owner.clone()),
            _ => None,
        };
        self.entries.values().filter_map(reserved).collect()
    }

    /// Takes over a reservation from the state before the file was opened again. It may have been written or not.
    pub(in crate::ledger) fn keep_reserved(&mut self, owner: Attachment) {
        let address = owner.address;
        match self.entries.get(&address) {
            Some(Entry::Active(active)) if active.key == owner.key => {
                self.recorded.insert(address);
            }
            None | Some(Entry::Released(_)) if !self.by_key.contains_key(&owner.key) => {
                self.released.retain(|released| *released != address);
                self.by_key.insert(owner.key.clone(), address);
            }
            _ => return,
        }
        self.entries.insert(address, Entry::Reserved(owner));
    }
}
