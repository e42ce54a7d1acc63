//! nftables without a helper: a table is one batch of netlink messages, kept
//! ready, so that restoring it after somebody's flush costs one system call.

mod consts;
mod loss;
mod monitor;
mod table;
mod weft;

use netlink_sys::protocols::NETLINK_NETFILTER;

use consts::*;
use table::{Batch, Shape, message};

use crate::error::{Cause, Context, Error, Result};
use crate::netlink::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, Netlink, Reply};
use crate::netns::NetNs;
use crate::wire::{self, Attrs, Message};

pub use monitor::{NftChange, NftMonitor};
pub use table::{Action, Base, Chain, ChainKind, Hook, Interface, Match, Rule, Ruleset, Table};
pub use weft::{WEFT_TABLE, WeftNft, weft_table};

const NFGENMSG: usize = 4;

/// How often the state after a change is read again because somebody else
/// changed nftables meanwhile.
const READ_ATTEMPTS: usize = 16;

/// An nftables socket. It speaks of the namespace it was opened in, whichever
/// thread uses it.
#[derive(Debug)]
pub struct Nft {
    netlink: Netlink,
}

/// What the kernel held right after a table was put there. With it,
/// [`Nft::is_intact`] tells whether anybody has changed the table since.
#[derive(Clone, Debug)]
pub struct Applied {
    table: String,
    generation: u32,
    contents: Contents,
}

/// All that can change in a table without sets: objects that are replaced get
/// new handles, only policies change in place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Contents {
    /// Name, handle, hook and policy.
    chains: Vec<[Vec<u8>; 4]>,
    /// Chain and handle, in the order the kernel works on them.
    rules: Vec<[Vec<u8>; 2]>,
}

// === impl Nft ===

impl Nft {
    /// A socket of the calling thread's namespace.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn open() -> Result<Self> {
        let netlink = Netlink::open(NETLINK_NETFILTER).context("open", "nftables socket")?;
        Ok(Self { netlink })
    }

    /// A socket of another namespace.
    ///
    /// # Errors
    /// As for [`open`](Self::open) and [`NetNs::run`].
    pub fn open_in(netns: &NetNs) -> Result<Self> {
        let netlink = Netlink::open_in(NETLINK_NETFILTER, netns)?.context("open", "nftables socket")?;
        Ok(Self { netlink })
    }

    /// Makes the table what the rule set says, in one step.
    ///
    /// # Errors
    /// The kernel's refusal, with the object it refused; nothing has changed
    /// then. `EINTR` if others keep changing the table so that what was
    /// applied can't be read back.
    pub fn apply(&mut self, ruleset: &Ruleset) -> Result<Applied> {
        const OPERATION: &str = "replace nftables table";
        self.commit(OPERATION, &ruleset.batch, &ruleset.steps, &ruleset.table)?;
        for _ in 0..READ_ATTEMPTS {
            let generation = self.generation()?;
            let contents = self.contents(&ruleset.table)?;
            if self.generation()? != generation {
                continue;
            }
            if contents.shape() != ruleset.shape {
                // Somebody was faster than the reading.
                self.commit(OPERATION, &ruleset.batch, &ruleset.steps, &ruleset.table)?;
                continue;
            }
            return Ok(Applied {
                table: ruleset.table.clone(),
                generation,
                contents,
            });
        }
        Err(Error::new(OPERATION, &ruleset.table, rustix::io::Errno::INTR))
    }

    /// Whether the table is still what was applied. Costs one request if
    /// nobody has changed anything in nftables.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn is_intact(&mut self, applied: &mut Applied) -> Result<bool> {
        let generation = self.generation()?;
        if generation == applied.generation {
            return Ok(true);
        }
        let intact = self.contents(&applied.table)? == applied.contents;
        if intact {
            applied.generation = generation;
        }
        Ok(intact)
    }

    /// Whether there is a table of that name in the family `ip`.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn has_table(&mut self, name: &str) -> Result<bool> {
        let request = message(NFT_MSG_GETTABLE, NLM_F_ACK).str(NFTA_TABLE_NAME, name);
        match self
            .netlink
            .request(request)
            .context("look up nftables table", name)
        {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes a table of the family `ip`. Returns whether it was there.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn delete_table(&mut self, name: &str) -> Result<bool> {
        const OPERATION: &str = "delete nftables table";
        if !self.has_table(name)? {
            return Ok(false);
        }
        let mut batch = Batch::default();
        // Deleting a table that goes away meanwhile would be an error.
        batch.push(
            "table",
            message(NFT_MSG_NEWTABLE, NLM_F_CREATE).str(NFTA_TABLE_NAME, name),
        );
        batch.push("table", message(NFT_MSG_DELTABLE, 0).str(NFTA_TABLE_NAME, name));
        let (bytes, steps) = batch.finish().context(OPERATION, name)?;
        self.commit(OPERATION, &bytes, &steps, name)?;
        Ok(true)
    }

    fn commit(&mut self, operation: &'static str, batch: &[u8], steps: &[String], table: &str) -> Result<()> {
        let answers = self.netlink.batch(batch).context(operation, table)?;
        let mut acknowledged = false;
        for (sequence, answer) in answers {
            let step = steps.get(sequence as usize).map_or("", String::as_str);
            answer.context(operation, format_args!("{table} ({step})"))?;
            acknowledged |= sequence as usize + 1 == steps.len();
        }
        if acknowledged {
            Ok(())
        } else {
            Err(Error::new(
                operation,
                table,
                Cause::Malformed("the batch was not acknowledged"),
            ))
        }
    }

    /// The number of the last change of nftables in this namespace.
    fn generation(&mut self) -> Result<u32> {
        const OPERATION: &str = "read the generation of";
        let replies = self
            .netlink
            .request(message(NFT_MSG_GETGEN, NLM_F_ACK))
            .context(OPERATION, "nftables")?;
        replies
            .iter()
            .find_map(|(_, payload)| generation_of(payload))
            .ok_or(Cause::Malformed("no generation in the answer"))
            .context(OPERATION, "nftables")
    }

    /// Nothing, if there is no such table.
    fn contents(&mut self, table: &str) -> Result<Contents> {
        const OPERATION: &str = "read nftables table";
        // The kernel does not filter chains by table.
        let chains = self
            .dump(&message(NFT_MSG_GETCHAIN, NLM_F_DUMP))
            .context(OPERATION, table)?;
        let rules = self
            .dump(&message(NFT_MSG_GETRULE, NLM_F_DUMP).str(NFTA_RULE_TABLE, table))
            .context(OPERATION, table)?;
        Ok(Contents {
            chains: chains
                .iter()
                .map(|payload| Attrs::after(payload, NFGENMSG))
                .filter(|attrs| attrs.find(NFTA_CHAIN_TABLE).map(wire::text).as_deref() == Some(table))
                .map(|attrs| {
                    values(
                        attrs,
                        [
                            NFTA_CHAIN_NAME,
                            NFTA_CHAIN_HANDLE,
                            NFTA_CHAIN_HOOK,
                            NFTA_CHAIN_POLICY,
                        ],
                    )
                })
                .collect(),
            rules: rules
                .iter()
                .map(|payload| {
                    values(
                        Attrs::after(payload, NFGENMSG),
                        [NFTA_RULE_CHAIN, NFTA_RULE_HANDLE],
                    )
                })
                .collect(),
        })
    }

    fn dump(&mut self, request: &Message) -> Result<Vec<Vec<u8>>, Cause> {
        let replies = self.netlink.dump(request)?;
        Ok(replies.into_iter().map(|(_, payload): Reply| payload).collect())
    }
}

// === impl Contents ===

impl Contents {
    fn shape(&self) -> Shape {
        Shape {
            chains: self.chains.len(),
            rules: self.rules.len(),
        }
    }
}

fn values<const N: usize>(attrs: Attrs<'_>, kinds: [u16; N]) -> [Vec<u8>; N] {
    kinds.map(|kind| attrs.find(kind).unwrap_or_default().to_vec())
}

/// Reads the payload of `NFT_MSG_NEWGEN`.
fn generation_of(payload: &[u8]) -> Option<u32> {
    let value = Attrs::after(payload, NFGENMSG).find(NFTA_GEN_ID)?;
    Some(u32::from_be_bytes(*value.first_chunk()?))
}
