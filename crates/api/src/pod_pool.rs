use ipnet::Ipv4Net;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use weft_model::{BlockError, BlockSize, CidrError, PodCidr, UserError, codes, first_overlap, parse_cidr};

use crate::AddressCounts;

/// Ranges of pod addresses, given out to nodes one block at a time.
///
/// A pool grows while it is in use by appending to `cidrs`; ranges need not be
/// contiguous. Several pools may select the same node.
#[derive(CustomResource, JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "weft.dev",
    version = "v1alpha1",
    kind = "PodPool",
    plural = "podpools",
    shortname = "pp",
    category = "weft",
    derive = "PartialEq",
    status = "PodPoolStatus",
    doc = "A PodPool holds ranges of pod addresses. The operator gives them to nodes one block at a time.",
    printcolumn(
        name = "CIDRs",
        type_ = "string",
        json_path = ".spec.cidrs",
        description = "The ranges blocks are taken from"
    ),
    printcolumn(
        name = "Block size",
        type_ = "integer",
        json_path = ".spec.blockSize",
        description = "Prefix length of a block"
    ),
    printcolumn(
        name = "Blocks used",
        type_ = "integer",
        json_path = ".status.allocated",
        description = "Blocks that belong to nodes"
    ),
    printcolumn(
        name = "Blocks",
        type_ = "integer",
        json_path = ".status.capacity",
        description = "Blocks the ranges hold"
    ),
    printcolumn(
        name = "Addresses used",
        type_ = "integer",
        json_path = ".status.addresses.used",
        description = "Addresses that belong to pods"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        description = "Whether the pool gives out blocks"
    ),
    printcolumn(
        name = "Retiring",
        type_ = "string",
        json_path = ".spec.retiring",
        description = "Ranges that give out no more blocks",
        priority = 1
    ),
    printcolumn(
        name = "IPAM",
        type_ = "string",
        json_path = ".spec.ipam",
        description = "Where a node's blocks come from",
        priority = 1
    ),
    printcolumn(
        name = "Addresses",
        type_ = "integer",
        json_path = ".status.addresses.capacity",
        description = "Addresses in the blocks that belong to nodes",
        priority = 1
    ),
    printcolumn(
        name = "Exhausted",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Exhausted\")].status",
        description = "Whether a node waits for a block",
        priority = 1
    ),
    printcolumn(
        name = "Capacity low",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"CapacityLow\")].status",
        description = "Whether 80 % of blocks or addresses are in use",
        priority = 1
    ),
    printcolumn(
        name = "Overlapping",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Overlapping\")].status",
        description = "Whether a range overlaps another network",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[schemars(extend("x-kubernetes-validations" = crate::rules::pool_spec()))]
#[serde(rename_all = "camelCase")]
pub struct PodPoolSpec {
    /// IPv4 ranges that blocks are taken from, such as 10.244.0.0/16: canonical
    /// (no host bits), /8 to /30, and apart from the addresses of nodes and
    /// services. Append to grow the pool. A range that has blocks with nodes can
    /// be widened or cut up, but not removed: put it into `retiring` first.
    #[schemars(schema_with = "crate::schema::pool_cidrs")]
    pub cidrs: Vec<String>,

    /// Where a node's blocks come from.
    #[serde(default)]
    pub ipam: Ipam,

    /// Prefix length of the blocks nodes get, 20 (4,096 addresses) to 30 (4
    /// addresses). Every address of a block is an ordinary pod address, the
    /// first and the last one too. A change holds for blocks given out from
    /// then on. Without effect under ipam `node`.
    #[serde(default = "default_block_size")]
    #[schemars(range(min = 20, max = 30))]
    pub block_size: u8,

    /// Which nodes get blocks of this pool; all of them if absent or empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::node_selector")]
    pub node_selector: Option<LabelSelector>,

    /// Ranges that no block may touch, such as one that is routed elsewhere.
    /// Each shares addresses with an entry of `cidrs`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::optional_cidrs")]
    pub excluded: Vec<String>,

    /// Entries of `cidrs`, written as there, that give out no more blocks and
    /// whose blocks are taken back as soon as a node has another one and no pod
    /// uses an address of them. Once `status.ranges` counts none for an entry
    /// it may be removed from both lists.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::retiring_cidrs")]
    pub retiring: Vec<String>,

    /// Destinations outside the overlay that see the pod's own address instead
    /// of the node's. Something there has to route the pool's ranges back.
    #[serde(default, rename = "nonMasqueradeCIDRs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::optional_cidrs")]
    pub non_masquerade_cidrs: Vec<String>,
}

/// Where the blocks of a node come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Ipam {
    /// The operator gives out blocks of `blockSize` on demand.
    #[default]
    Pool,
    /// The Node's `spec.podCIDRs`, which kube-controller-manager chose. They
    /// have to lie in `cidrs`.
    Node,
}

/// How much of a pool is given out. Written by the operator.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodPoolStatus {
    /// Blocks of the present size the ranges hold, less excluded ones.
    #[serde(default)]
    pub capacity: u32,
    /// Blocks of this pool that belong to nodes.
    #[serde(default)]
    pub allocated: u32,
    /// The same for each entry of `spec.cidrs`.
    #[serde(default)]
    #[schemars(schema_with = "crate::schema::pool_ranges")]
    pub ranges: Vec<PoolRange>,
    /// The addresses of all blocks that belong to nodes, as the nodes' agents
    /// count them.
    #[serde(default)]
    pub addresses: AddressCounts,
    /// `Ready` (the pool gives out blocks), `Exhausted` (a node asks for a
    /// block and there is none), `Overlapping` (the message names the pair of
    /// ranges) and `CapacityLow` (80 % or more of blocks or addresses in use).
    #[serde(default)]
    #[schemars(schema_with = "crate::schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// How much of one range of a pool is given out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PoolRange {
    /// The range, as in `spec.cidrs`.
    #[schemars(schema_with = "crate::schema::cidr")]
    pub cidr: String,
    /// Blocks of the present size the range holds, less excluded ones.
    pub capacity: u32,
    /// Blocks of the range that belong to nodes.
    pub allocated: u32,
    /// Whether the range gives out no more blocks.
    #[serde(default)]
    pub retiring: bool,
}

/// A pool's specification, read and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolRanges {
    /// Where a node's blocks come from.
    pub ipam: Ipam,
    /// The ranges blocks are taken from, in the order given.
    pub cidrs: Vec<PodCidr>,
    /// The size of blocks given out from now on.
    pub block_size: BlockSize,
    /// What no block may touch.
    pub excluded: Vec<Ipv4Net>,
    /// Those of `cidrs` that give out no more blocks.
    pub retiring: Vec<PodCidr>,
    /// Destinations that see the pod's own address.
    pub non_masquerade: Vec<Ipv4Net>,
}

/// What is wrong with a pool's specification.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// A value in a list of ranges is no usable range.
    #[error("spec.{field}[{index}]: {cause}")]
    Cidr {
        /// The list.
        field: &'static str,
        /// The position in it, from 0.
        index: usize,
        /// What is wrong.
        cause: CidrError,
    },
    /// The block size is out of range.
    #[error("spec.blockSize: {0}")]
    BlockSize(BlockError),
    /// No range of the pool holds a single block.
    #[error("spec.blockSize: a block of {size} is larger than {largest}, the largest range of the pool")]
    BlockLargerThanPool {
        /// The block size asked for.
        size: BlockSize,
        /// The largest range.
        largest: PodCidr,
    },
    /// A list names a range twice.
    #[error("spec.{field}[{index}]: {text} stands in the list twice")]
    Duplicate {
        /// The list.
        field: &'static str,
        /// The second position in it, from 0.
        index: usize,
        /// The range.
        text: String,
    },
    /// Two ranges of the pool share addresses.
    #[error("spec.cidrs: {outer} overlaps {inner}")]
    Overlap {
        /// The larger one.
        outer: Ipv4Net,
        /// The one inside it, or the same again.
        inner: Ipv4Net,
    },
    /// An exclusion that excludes nothing.
    #[error("spec.excluded: {0} excludes nothing: it lies in no entry of spec.cidrs")]
    ExcludesNothing(Ipv4Net),
    /// A range that is to retire and is none of the pool's.
    #[error("spec.retiring: {0} is no entry of spec.cidrs")]
    RetiringUnknown(PodCidr),
    /// Blocks that nodes have for life can't be taken back.
    #[error("spec.retiring: a range can't retire under ipam node: a Node keeps its spec.podCIDRs for life")]
    RetiringNodeRanges,
    /// The selector's operators and values don't fit each other.
    #[error("spec.nodeSelector.matchExpressions[{index}]: operator {operator} of {key} {problem}")]
    Selector {
        /// The position in the list, from 0.
        index: usize,
        /// The operator as given.
        operator: String,
        /// The label's key.
        key: String,
        /// What does not fit.
        problem: &'static str,
    },
    /// There is no range at all.
    #[error("spec.cidrs is empty")]
    NoCidr,
}

fn default_block_size() -> u8 {
    24
}

// === impl PodPoolSpec ===

impl Default for PodPoolSpec {
    /// What an object gets for the fields it leaves out; no range at all.
    fn default() -> Self {
        Self {
            cidrs: Vec::new(),
            ipam: Ipam::default(),
            block_size: default_block_size(),
            node_selector: None,
            excluded: Vec::new(),
            retiring: Vec::new(),
            non_masquerade_cidrs: Vec::new(),
        }
    }
}

impl PodPoolSpec {
    /// Reads the ranges.
    ///
    /// # Errors
    /// The first [`PoolError`] in the order of the fields.
    pub fn ranges(&self) -> Result<PoolRanges, PoolError> {
        let block_size = BlockSize::new(self.block_size).map_err(PoolError::BlockSize)?;
        let cidrs = parse_all("cidrs", &self.cidrs, str::parse::<PodCidr>)?;
        let excluded = parse_all("excluded", &self.excluded, parse_cidr)?;
        let retiring = parse_all("retiring", &self.retiring, str::parse::<PodCidr>)?;
        let non_masquerade = parse_all("nonMasqueradeCIDRs", &self.non_masquerade_cidrs, parse_cidr)?;
        let largest = cidrs
            .iter()
            .min_by_key(|cidr| cidr.net().prefix_len())
            .ok_or(PoolError::NoCidr)?;
        if let Some(pair) = first_overlap(cidrs.iter().map(|cidr| ((), cidr.net()))) {
            return Err(PoolError::Overlap {
                outer: pair.first.1,
                inner: pair.second.1,
            });
        }
        if self.ipam == Ipam::Pool && largest.blocks(block_size) == 0 {
            return Err(PoolError::BlockLargerThanPool {
                size: block_size,
                largest: *largest,
            });
        }
        let apart = |net: &Ipv4Net| {
            cidrs
                .iter()
                .all(|cidr| !cidr.net().contains(net) && !net.contains(&cidr.net()))
        };
        if let Some(net) = excluded.iter().copied().find(apart) {
            return Err(PoolError::ExcludesNothing(net));
        }
        if let Some(cidr) = retiring.iter().find(|cidr| !cidrs.contains(cidr)) {
            return Err(PoolError::RetiringUnknown(*cidr));
        }
        if self.ipam == Ipam::Node && !retiring.is_empty() {
            return Err(PoolError::RetiringNodeRanges);
        }
        self.node_selector.as_ref().map_or(Ok(()), check_selector)?;
        Ok(PoolRanges {
            ipam: self.ipam,
            cidrs,
            block_size,
            excluded,
            retiring,
            non_masquerade,
        })
    }
}

/// The selector's operators are known and have values where they need them.
fn check_selector(selector: &LabelSelector) -> Result<(), PoolError> {
    let expressions = selector.match_expressions.iter().flatten().enumerate();
    for (index, expression) in expressions {
        let values = expression
            .values
            .as_ref()
            .is_some_and(|values| !values.is_empty());
        let problem = match (expression.operator.as_str(), values) {
            ("In" | "NotIn", true) | ("Exists" | "DoesNotExist", false) => continue,
            ("In" | "NotIn", false) => "needs values",
            ("Exists" | "DoesNotExist", true) => "takes no values",
            _ => "is none: use In, NotIn, Exists or DoesNotExist",
        };
        return Err(PoolError::Selector {
            index,
            operator: expression.operator.clone(),
            key: expression.key.clone(),
            problem,
        });
    }
    Ok(())
}

// === impl PoolError ===

impl From<PoolError> for UserError {
    fn from(error: PoolError) -> UserError {
        let message = error.to_string();
        let (code, next) = match error {
            PoolError::Cidr { cause, .. } => {
                let cause = UserError::from(cause);
                (cause.code(), cause.next().to_owned())
            }
            PoolError::BlockSize(cause) => {
                let cause = UserError::from(cause);
                (cause.code(), cause.next().to_owned())
            }
            PoolError::BlockLargerThanPool { size, largest } => (
                codes::BLOCK_LARGER_THAN_POOL,
                format!(
                    "use a block size of {} or more, or a range of {size} or larger",
                    largest.net().prefix_len()
                ),
            ),
            PoolError::Overlap { .. } | PoolError::Duplicate { .. } => (codes::CIDR_OVERLAP, "remove one of the two".to_owned()),
            PoolError::ExcludesNothing(_) => (
                codes::ADDRESS_OUTSIDE_RANGE,
                "remove it from spec.excluded, or correct it".to_owned(),
            ),
            PoolError::RetiringUnknown(_) => (
                codes::ADDRESS_OUTSIDE_RANGE,
                "write it as it stands in spec.cidrs, and remove it from spec.retiring first once it is drained".to_owned(),
            ),
            PoolError::RetiringNodeRanges => (
                codes::CONFLICTING_FLAGS,
                "delete the nodes of the range and add them again".to_owned(),
            ),
            PoolError::Selector { .. } => (
                codes::INVALID_OBJECT,
                "kubectl explain podpool.spec.nodeSelector.matchExpressions".to_owned(),
            ),
            PoolError::NoCidr => (
                codes::MALFORMED_CIDR,
                "give the pool a range such as 10.244.0.0/16".to_owned(),
            ),
        };
        UserError::new(code, message, next)
    }
}

fn parse_all<T>(
    field: &'static str,
    texts: &[String],
    parse: impl Fn(&str) -> Result<T, CidrError>,
) -> Result<Vec<T>, PoolError> {
    let repeated = (1..texts.len()).find(|index| texts[..*index].contains(&texts[*index]));
    if let Some(index) = repeated {
        let text = texts[index].clone();
        return Err(PoolError::Duplicate { field, index, text });
    }
    texts
        .iter()
        .enumerate()
        .map(|(index, text)| parse(text).map_err(|cause| PoolError::Cidr { field, index, cause }))
        .collect()
}
