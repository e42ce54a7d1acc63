//! A table of nftables in the family `ip`, and its translation into one batch.

use std::ops::RangeInclusive;

use ipnet::Ipv4Net;

use super::consts::*;
use crate::error::{Cause, Error, Result};
use crate::netlink::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST};
use crate::wire::Message;

/// One table with all that is in it.
///
/// There are no sets in it: the kernel fills a new interval set only after the
/// rules that look it up have become visible (`nf_tables_commit` calls the
/// set's `commit` last), so that packets meet an empty set for a moment. Rules
/// alone change in one instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Name; Weft owns the whole table.
    pub name: String,
    /// What `nft list` shows beside it, at most 127 bytes, or empty.
    pub comment: String,
    /// Chains; base chains and those they go to.
    pub chains: Vec<Chain>,
}

/// A chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Name, unique in the table.
    pub name: &'static str,
    /// Where packets enter it; `None` if only from other chains. The policy is
    /// `accept`.
    pub base: Option<Base>,
    /// Its rules, first first.
    pub rules: Vec<Rule>,
}

/// Where packets enter a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    /// What the chain may do.
    pub kind: ChainKind,
    /// Where packets pass it.
    pub hook: Hook,
    /// Its place among the chains of a hook, lower first
    /// (include/uapi/linux/netfilter_ipv4.h, `NF_IP_PRI_*`).
    pub priority: i32,
}

/// Type of a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainKind {
    /// Sees every packet.
    Filter,
    /// Sees the first packet of a connection.
    Nat,
}

/// Where packets pass a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// On arrival, before routing.
    Prerouting,
    /// Made by this node, after routing.
    Output,
    /// On the way out, forwarded or not.
    Postrouting,
}

/// Conditions that all have to hold, then what is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What `nft list` shows beside it, at most 127 bytes, or empty.
    pub comment: &'static str,
    /// Conditions, first first.
    pub when: Vec<Match>,
    /// Whether packets and bytes are counted.
    pub counted: bool,
    /// What is done.
    pub then: Action,
}

/// A condition on a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// The link it came by has this name.
    Iif(Interface),
    /// The link it leaves by has this name.
    Oif(Interface),
    /// The link it leaves by has another name.
    OifNot(Interface),
    /// Its source is in this range.
    Source(Ipv4Net),
    /// Its destination is in this range.
    Destination(Ipv4Net),
    /// Its connection was begun by an address in this range. Never of a packet that isn't tracked.
    Beginner(Ipv4Net),
    /// Its connection is answered by an address in this range: the source of replies before they are translated back.
    /// Never of a packet that isn't tracked.
    Answerer(Ipv4Net),
    /// It carries this protocol (IANA protocol numbers).
    Protocol(u8),
    /// Its destination port, of TCP or UDP: comes after [`Protocol`](Self::Protocol).
    DestinationPort(u16),
}

/// A name of links.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Interface {
    /// This very name.
    Named(String),
    /// All names that begin so, `weft*`.
    Prefix(&'static str),
}

/// What is done with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// It goes on behind this chain and those it came here by.
    Return,
    /// It goes on in another chain of the table and does not come back.
    Goto(&'static str),
    /// It is dropped.
    Drop,
    /// Its connection isn't tracked.
    Notrack,
    /// Its connection gets the leaving link's address, and a port that nobody
    /// can guess, of this range if there is one.
    Masquerade(Option<RangeInclusive<u16>>),
}

/// A table as one batch of netlink messages, which the kernel carries out as a
/// whole: the table is as given afterwards, whatever it was before, and no
/// packet meets anything in between.
#[derive(Clone, PartialEq, Eq)]
pub struct Ruleset {
    pub(super) table: String,
    pub(super) batch: Vec<u8>,
    /// What each message of the batch is about, by sequence number.
    pub(super) steps: Vec<String>,
    pub(super) shape: Shape,
}

/// How many of what a table holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) chains: usize,
    pub(super) rules: usize,
}

// === impl Table ===

impl Table {
    /// Translates the table.
    ///
    /// # Errors
    /// A comment or the name of a link is too long, or a range of ports empty.
    pub fn compile(&self) -> Result<Ruleset> {
        self.encode()
            .map_err(|cause| Error::new("translate nftables table", &self.name, cause))
    }

    fn encode(&self) -> Result<Ruleset, Cause> {
        let mut batch = Batch::default();
        let table = |kind, flags| message(kind, flags).str(NFTA_TABLE_NAME, &self.name);
        // Deleting what may not be there is an error; adding what is there is none.
        batch.push("table", table(NFT_MSG_NEWTABLE, NLM_F_CREATE));
        batch.push("old table", table(NFT_MSG_DELTABLE, 0));
        let comment = udata_comment(&self.comment)?;
        batch.push(
            "table",
            table(NFT_MSG_NEWTABLE, NLM_F_CREATE)
                .some(comment, |m, comment| m.attr(NFTA_TABLE_USERDATA, &comment)),
        );
        let mut shape = Shape::default();
        for chain in &self.chains {
            batch.push(format_args!("chain {}", chain.name), chain.message(&self.name));
            shape.chains += 1;
        }
        for chain in &self.chains {
            chain.rules.iter().try_for_each(Rule::check)?;
            for (rule, number) in chain.rules.iter().zip(1..) {
                let comment = udata_comment(rule.comment)?;
                batch.push(
                    format_args!("rule {number} of chain {}", chain.name),
                    message(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND)
                        .str(NFTA_RULE_TABLE, &self.name)
                        .str(NFTA_RULE_CHAIN, chain.name)
                        .nest(NFTA_RULE_EXPRESSIONS, |list| rule.fill(list))
                        .some(comment, |m, comment| m.attr(NFTA_RULE_USERDATA, &comment)),
                );
                shape.rules += 1;
            }
        }
        let (batch, steps) = batch.finish()?;
        Ok(Ruleset {
            table: self.name.clone(),
            batch,
            steps,
            shape,
        })
    }
}

// === impl Chain ===

impl Chain {
    fn message(&self, table: &str) -> Message {
        let chain = message(NFT_MSG_NEWCHAIN, NLM_F_CREATE)
            .str(NFTA_CHAIN_TABLE, table)
            .str(NFTA_CHAIN_NAME, self.name);
        let Some(base) = self.base else {
            return chain;
        };
        let hook = match base.hook {
            Hook::Prerouting => NF_INET_PRE_ROUTING,
            Hook::Output => NF_INET_LOCAL_OUT,
            Hook::Postrouting => NF_INET_POST_ROUTING,
        };
        let kind = match base.kind {
            ChainKind::Filter => "filter",
            ChainKind::Nat => "nat",
        };
        chain
            .nest(NFTA_CHAIN_HOOK, |nested| {
                nested
                    .be32(NFTA_HOOK_HOOKNUM, hook)
                    .be32(NFTA_HOOK_PRIORITY, base.priority.cast_unsigned())
            })
            .be32(NFTA_CHAIN_POLICY, NF_ACCEPT.cast_unsigned())
            .str(NFTA_CHAIN_TYPE, kind)
    }
}

// === impl Rule ===

impl Rule {
    /// What the kernel would take and misunderstand.
    fn check(&self) -> Result<(), Cause> {
        if let Action::Masquerade(Some(ports)) = &self.then
            && (ports.is_empty() || *ports.start() == 0)
        {
            return Err(Cause::Invalid(format!(
                "{}-{} is no range of ports",
                ports.start(),
                ports.end()
            )));
        }
        self.when.iter().try_for_each(|condition| match condition {
            Match::Iif(Interface::Named(name))
            | Match::Oif(Interface::Named(name))
            | Match::OifNot(Interface::Named(name))
                if !(1..libc::IFNAMSIZ).contains(&name.len()) =>
            {
                Err(Cause::Invalid(format!("{name:?} is no interface name")))
            }
            _ => Ok(()),
        })
    }

    fn fill(&self, list: Message) -> Message {
        let list = self
            .when
            .iter()
            .fold(list, |list, condition| condition.fill(list));
        let list = if self.counted {
            expression(list, "counter", |data| data)
        } else {
            list
        };
        self.then.fill(list)
    }
}

// === impl Match ===

impl Match {
    fn fill(&self, list: Message) -> Message {
        match self {
            Self::Iif(name) => interface(list, NFT_META_IIFNAME, NFT_CMP_EQ, name),
            Self::Oif(name) => interface(list, NFT_META_OIFNAME, NFT_CMP_EQ, name),
            Self::OifNot(name) => interface(list, NFT_META_OIFNAME, NFT_CMP_NEQ, name),
            Self::Source(net) => in_range(address(list, SOURCE), *net),
            Self::Destination(net) => in_range(address(list, DESTINATION), *net),
            Self::Beginner(net) => in_range(sender(list, IP_CT_DIR_ORIGINAL), *net),
            Self::Answerer(net) => in_range(sender(list, IP_CT_DIR_REPLY), *net),
            Self::Protocol(protocol) => compare(meta(list, NFT_META_L4PROTO), NFT_CMP_EQ, &[*protocol]),
            Self::DestinationPort(port) => {
                let loaded = payload(list, NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2);
                compare(loaded, NFT_CMP_EQ, &port.to_be_bytes())
            }
        }
    }
}

// === impl Action ===

impl Action {
    fn fill(&self, list: Message) -> Message {
        match self {
            Self::Return => verdict(list, NFT_RETURN, None),
            Self::Goto(chain) => verdict(list, NFT_GOTO, Some(chain)),
            Self::Drop => verdict(list, NF_DROP, None),
            Self::Notrack => expression(list, "notrack", |data| data),
            Self::Masquerade(None) => expression(list, "masq", |data| {
                data.be32(NFTA_MASQ_FLAGS, NF_NAT_RANGE_PROTO_RANDOM_FULLY)
            }),
            Self::Masquerade(Some(ports)) => {
                let list = immediate(list, NFT_REG_1, *ports.start());
                let list = immediate(list, NFT_REG_2, *ports.end());
                expression(list, "masq", |data| {
                    data.be32(
                        NFTA_MASQ_FLAGS,
                        NF_NAT_RANGE_PROTO_SPECIFIED | NF_NAT_RANGE_PROTO_RANDOM_FULLY,
                    )
                    .be32(NFTA_MASQ_REG_PROTO_MIN, NFT_REG_1)
                    .be32(NFTA_MASQ_REG_PROTO_MAX, NFT_REG_2)
                })
            }
        }
    }
}

// === impl Ruleset ===

impl Ruleset {
    /// Name of the table.
    pub fn table(&self) -> &str {
        &self.table
    }
}

impl std::fmt::Debug for Ruleset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ruleset")
            .field("table", &self.table)
            .field("bytes", &self.batch.len())
            .field("shape", &self.shape)
            .finish_non_exhaustive()
    }
}

/// Messages in order, between the marks of a batch.
#[derive(Debug, Default)]
pub(super) struct Batch {
    messages: Vec<Message>,
    steps: Vec<String>,
}

// === impl Batch ===

impl Batch {
    pub(super) fn push(&mut self, step: impl std::fmt::Display, message: Message) {
        self.messages.push(message);
        self.steps.push(step.to_string());
    }

    /// The bytes, and what the messages are about: number n has sequence number n.
    pub(super) fn finish(self) -> Result<(Vec<u8>, Vec<String>), Cause> {
        let mut bytes = mark(NFNL_MSG_BATCH_BEGIN).finish(0)?;
        let last = self.messages.len();
        let mut steps = vec!["batch".to_owned()];
        for ((message, step), sequence) in self.messages.into_iter().zip(self.steps).zip(1u32..) {
            // One acknowledgement, for the last, tells success from silence.
            let message = if sequence as usize == last {
                message.with_flags(NLM_F_ACK)
            } else {
                message
            };
            bytes.extend(message.finish(sequence)?);
            steps.push(step);
        }
        bytes.extend(mark(NFNL_MSG_BATCH_END).finish(0)?);
        Ok((bytes, steps))
    }
}

/// A request of nf_tables for the family `ip`.
pub(super) fn message(kind: u16, flags: u16) -> Message {
    message_of(libc::AF_INET as u8, kind, flags)
}

/// A request of nf_tables for a family (include/uapi/linux/netfilter.h, `NFPROTO_*`).
pub(super) fn message_of(family: u8, kind: u16, flags: u16) -> Message {
    Message::new(kind, NLM_F_REQUEST | flags).raw(&[family, 0, 0, 0])
}

fn mark(kind: u16) -> Message {
    let [high, low] = NFNL_SUBSYS_NFTABLES.to_be_bytes();
    Message::new(kind, NLM_F_REQUEST).raw(&[libc::AF_UNSPEC as u8, 0, high, low])
}

/// Offsets in the IPv4 header (RFC 791).
const SOURCE: u32 = 12;
const DESTINATION: u32 = 16;

pub(super) fn expression(list: Message, name: &str, data: impl FnOnce(Message) -> Message) -> Message {
    list.nest(NFTA_LIST_ELEM, |element| {
        element.str(NFTA_EXPR_NAME, name).nest(NFTA_EXPR_DATA, data)
    })
}

fn meta(list: Message, key: u32) -> Message {
    expression(list, "meta", |data| {
        data.be32(NFTA_META_KEY, key).be32(NFTA_META_DREG, NFT_REG_1)
    })
}

fn payload(list: Message, base: u32, offset: u32, length: u32) -> Message {
    expression(list, "payload", |data| {
        data.be32(NFTA_PAYLOAD_DREG, NFT_REG_1)
            .be32(NFTA_PAYLOAD_BASE, base)
            .be32(NFTA_PAYLOAD_OFFSET, offset)
            .be32(NFTA_PAYLOAD_LEN, length)
    })
}

pub(super) fn compare(list: Message, operation: u32, value: &[u8]) -> Message {
    expression(list, "cmp", |data| {
        data.be32(NFTA_CMP_SREG, NFT_REG_1)
            .be32(NFTA_CMP_OP, operation)
            .nest(NFTA_CMP_DATA, |nested| nested.attr(NFTA_DATA_VALUE, value))
    })
}

fn interface(list: Message, key: u32, operation: u32, name: &Interface) -> Message {
    let value = match name {
        // The whole register, so that the closing NUL is compared too.
        Interface::Named(name) => {
            let mut padded = name.clone().into_bytes();
            padded.resize(libc::IFNAMSIZ, 0);
            padded
        }
        Interface::Prefix(prefix) => prefix.as_bytes().to_vec(),
    };
    compare(meta(list, key), operation, &value)
}

fn address(list: Message, offset: u32) -> Message {
    payload(list, NFT_PAYLOAD_NETWORK_HEADER, offset, 4)
}

/// The source of a connection's packets of one direction, as they arrive.
fn sender(list: Message, direction: u8) -> Message {
    expression(list, "ct", |data| {
        data.be32(NFTA_CT_DREG, NFT_REG_1)
            .be32(NFTA_CT_KEY, NFT_CT_SRC_IP)
            .u8(NFTA_CT_DIRECTION, direction)
    })
}

fn in_range(loaded: Message, net: Ipv4Net) -> Message {
    let masked = if net.prefix_len() == 32 {
        loaded
    } else {
        expression(loaded, "bitwise", |data| {
            data.be32(NFTA_BITWISE_SREG, NFT_REG_1)
                .be32(NFTA_BITWISE_DREG, NFT_REG_1)
                .be32(NFTA_BITWISE_LEN, 4)
                .nest(NFTA_BITWISE_MASK, |nested| {
                    nested.attr(NFTA_DATA_VALUE, &net.netmask().octets())
                })
                .nest(NFTA_BITWISE_XOR, |nested| nested.attr(NFTA_DATA_VALUE, &[0; 4]))
        })
    };
    compare(masked, NFT_CMP_EQ, &net.network().octets())
}

fn immediate(list: Message, register: u32, port: u16) -> Message {
    expression(list, "immediate", |data| {
        data.be32(NFTA_IMMEDIATE_DREG, register)
            .nest(NFTA_IMMEDIATE_DATA, |nested| {
                nested.attr(NFTA_DATA_VALUE, &port.to_be_bytes())
            })
    })
}

pub(super) fn verdict(list: Message, code: i32, chain: Option<&str>) -> Message {
    expression(list, "immediate", |data| {
        data.be32(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT)
            .nest(NFTA_IMMEDIATE_DATA, |nested| {
                nested.nest(NFTA_DATA_VERDICT, |verdict| {
                    verdict
                        .be32(NFTA_VERDICT_CODE, code.cast_unsigned())
                        .some(chain, |m, chain| m.str(NFTA_VERDICT_CHAIN, chain))
                })
            })
    })
}

/// Type, length and text with its NUL, as nft stores comments.
fn udata_comment(text: &str) -> Result<Option<Vec<u8>>, Cause> {
    if text.is_empty() {
        return Ok(None);
    }
    let length = u8::try_from(text.len() + 1)
        .ok()
        .filter(|length| *length <= 128)
        .ok_or_else(|| Cause::Invalid(format!("comment {text:?} is longer than 127 bytes")))?;
    let mut bytes = vec![UDATA_COMMENT, length];
    bytes.extend_from_slice(text.as_bytes());
    bytes.push(0);
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_longer_than_nft_shows_are_refused() {
        assert_eq!(udata_comment("").unwrap(), None);
        assert_eq!(udata_comment("ab").unwrap(), Some(vec![0, 3, b'a', b'b', 0]));
        assert!(udata_comment(&"x".repeat(128)).is_err());
        assert_eq!(
            udata_comment(&"x".repeat(127)).unwrap().map(|bytes| bytes.len()),
            Some(130)
        );
    }
}
