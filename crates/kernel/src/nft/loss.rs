//! A link that loses packets, for tests of what loss does.

use super::Nft;
use super::consts::*;
use super::table::{Batch, compare, expression, message_of, verdict};
use crate::error::{Cause, Context, Error, Result};
use crate::netlink::{NLM_F_APPEND, NLM_F_CREATE};
use crate::wire::Message;

// === impl Nft ===

impl Nft {
    /// Drops that many of a hundred packets as they arrive by `device`, chosen at random, before anything else of
    /// this namespace sees them but taps. 0 undoes it.
    ///
    /// # Errors
    /// `percent` is above 100, the name of the device is none, or the kernel's refusal.
    pub fn lose(&mut self, device: &str, percent: u8) -> Result<()> {
        const OPERATION: &str = "lose packets that arrive by";
        let (bytes, steps) = batch(device, percent)
            .map_err(|cause| Error::new(OPERATION, device, cause))?
            .finish()
            .context(OPERATION, device)?;
        self.commit(OPERATION, &bytes, &steps, device)
    }
}

fn batch(device: &str, percent: u8) -> Result<Batch, Cause> {
    if percent > 100 {
        return Err(Cause::Invalid(format!("{percent} is more than 100 percent")));
    }
    if !(1..libc::IFNAMSIZ).contains(&device.len()) {
        return Err(Cause::Invalid(format!("{device:?} is no interface name")));
    }
    const CHAIN: &str = "ingress";
    let name = format!("weft_loss_{device}");
    let table = |kind, flags| of_netdev(kind, flags).str(NFTA_TABLE_NAME, &name);
    let mut batch = Batch::default();
    // Deleting what may not be there is an error; adding what is there is none.
    batch.push("table", table(NFT_MSG_NEWTABLE, NLM_F_CREATE));
    batch.push("old table", table(NFT_MSG_DELTABLE, 0));
    if percent == 0 {
        return Ok(batch);
    }
    batch.push("table", table(NFT_MSG_NEWTABLE, NLM_F_CREATE));
    batch.push(
        "chain",
        of_netdev(NFT_MSG_NEWCHAIN, NLM_F_CREATE)
            .str(NFTA_CHAIN_TABLE, &name)
            .str(NFTA_CHAIN_NAME, CHAIN)
            .nest(NFTA_CHAIN_HOOK, |hook| {
                hook.be32(NFTA_HOOK_HOOKNUM, NF_NETDEV_INGRESS)
                    .be32(NFTA_HOOK_PRIORITY, 0)
                    .str(NFTA_HOOK_DEV, device)
            })
            .be32(NFTA_CHAIN_POLICY, NF_ACCEPT.cast_unsigned())
            .str(NFTA_CHAIN_TYPE, "filter"),
    );
    batch.push(
        "rule",
        of_netdev(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND)
            .str(NFTA_RULE_TABLE, &name)
            .str(NFTA_RULE_CHAIN, CHAIN)
            .nest(NFTA_RULE_EXPRESSIONS, |list| {
                let list = random_below_hundred(list);
                let list = compare(list, NFT_CMP_LT, &u32::from(percent).to_be_bytes());
                verdict(list, NF_DROP, None)
            }),
    );
    Ok(batch)
}

/// The number is made in the machine's byte order, and compared byte by byte.
fn random_below_hundred(list: Message) -> Message {
    let list = expression(list, "numgen", |data| {
        data.be32(NFTA_NG_DREG, NFT_REG_1)
            .be32(NFTA_NG_MODULUS, 100)
            .be32(NFTA_NG_TYPE, NFT_NG_RANDOM)
    });
    expression(list, "byteorder", |data| {
        data.be32(NFTA_BYTEORDER_SREG, NFT_REG_1)
            .be32(NFTA_BYTEORDER_DREG, NFT_REG_1)
            .be32(NFTA_BYTEORDER_OP, NFT_BYTEORDER_HTON)
            .be32(NFTA_BYTEORDER_LEN, 4)
            .be32(NFTA_BYTEORDER_SIZE, 4)
    })
}

fn of_netdev(kind: u16, flags: u16) -> Message {
    message_of(NFPROTO_NETDEV, kind, flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_would_misunderstand_is_refused() {
        assert!(batch("eth0", 100).is_ok());
        assert!(batch("eth0", 101).is_err());
        assert!(batch("", 10).is_err());
        assert!(batch("sixteen-letters-", 10).is_err());
    }
}
