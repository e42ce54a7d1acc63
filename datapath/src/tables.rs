//! The maps, and the questions the programs ask them.
#![expect(
    unsafe_code,
    reason = "values of maps are raw pointers; this module is their only user"
)]

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_F_NO_PREALLOC},
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, lpm_trie::Key},
    macros::btf_map,
};
use weft_abi::{
    Address, BlockKey, Config, Counter, DropReason, Endpoint, FlowKey, ForwardPath, FragmentKey, Prefix,
    PrefixKey, PrefixKind, packet::PROTOCOL_TCP,
};

const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;
const ANY: u64 = BPF_ANY as u64;

#[btf_map]
static CONFIG: Array<Config, 1> = Array::new();

#[btf_map]
static PREFIXES: LpmTrie<Address, Prefix, 131_072> = LpmTrie::new();

// As in the trie, a removed value is freed only after every running program has ended.
#[btf_map]
static BLOCKS: HashMap<BlockKey, Prefix, 131_072, NO_PREALLOC> = HashMap::new();

// Without preallocation a removed value is freed only after every running program has ended, so a reference taken here
// never sees another endpoint's data.
#[btf_map]
static ENDPOINTS_BY_IFINDEX: HashMap<u32, Endpoint, 4096, NO_PREALLOC> = HashMap::new();

#[btf_map]
static ENDPOINTS_BY_ADDR: HashMap<Address, Endpoint, 4096, NO_PREALLOC> = HashMap::new();

#[btf_map]
static NODES: HashMap<Address, u32, 16_384, NO_PREALLOC> = HashMap::new();

type StackFlows = LruHashMap<FlowKey, u32, 65_536>;

#[btf_map]
static STACK_FLOWS: StackFlows = StackFlows::new();

// Apart, so that a connection at rest is not the least recently used because of many DNS queries.
#[btf_map]
static STACK_FLOWS_TCP: StackFlows = StackFlows::new();

#[btf_map]
static STACK_FRAGMENTS: LruHashMap<FragmentKey, u32, 4096> = LruHashMap::new();

#[btf_map]
static DROPS: PerCpuArray<Counter, { DropReason::ALL.len() }> = PerCpuArray::new();

#[btf_map]
static FORWARDS: PerCpuArray<Counter, { ForwardPath::ALL.len() }> = PerCpuArray::new();

/// The node's configuration; `None` until the agent has written it.
#[inline(always)]
pub fn config() -> Option<&'static Config> {
    CONFIG.get(0).filter(|config| config.overlay_ifindex != 0)
}

/// What the longest prefix that holds `address` stands for.
#[inline(always)]
pub fn prefix_of(address: Address) -> Option<(PrefixKind, &'static Prefix)> {
    let prefix = match block_of(address) {
        Some(block) => block,
        None => PREFIXES.get(&Key::new(PrefixKey::HOST_BITS, address))?,
    };
    Some((PrefixKind::from_raw(prefix.kind)?, prefix))
}

/// The block that holds `address`, where one look tells. No longer prefix is inside one that is found here.
#[inline(always)]
fn block_of(address: Address) -> Option<&'static Prefix> {
    let key = CONFIG.get(0)?.blocks.key(address)?;
    // SAFETY: no preallocation, see above; values are replaced and not changed in place.
    unsafe { BLOCKS.get(key) }
}

/// [`prefix_of`], for when only the kind matters.
#[inline(always)]
pub fn kind_of(address: Address) -> Option<PrefixKind> {
    prefix_of(address).map(|(kind, _)| kind)
}

#[inline(always)]
pub fn endpoint_by_ifindex(ifindex: u32) -> Option<&'static Endpoint> {
    // SAFETY: no preallocation, see above; the fields that change in place are single words.
    unsafe { ENDPOINTS_BY_IFINDEX.get(ifindex) }
}

#[inline(always)]
pub fn endpoint_by_addr(address: Address) -> Option<&'static Endpoint> {
    // SAFETY: as above.
    unsafe { ENDPOINTS_BY_ADDR.get(address) }
}

/// Whether a node of the cluster has this underlay address.
#[inline(always)]
pub fn is_node(underlay: Address) -> bool {
    NODES.get_ptr(underlay).is_some()
}

/// Notes that the stack carries this flow of `endpoint`. Called for every packet of it that leaves the stack, so that a
/// note comes back should it have been evicted: before the reply to a request, but not before what the other end says
/// unasked.
#[inline(always)]
pub fn note_stack_flow(flow: &FlowKey, endpoint: &Endpoint) {
    if !is_stack_flow(flow) {
        // A full map makes room by itself; if the kernel has no memory, the next packet tries again.
        let _ = if is_tcp(flow) {
            STACK_FLOWS_TCP.insert(flow, 1, ANY)
        } else {
            STACK_FLOWS.insert(flow, 1, ANY)
        };
    }
    flag_stack_flows(ENDPOINTS_BY_ADDR.get_ptr_mut(endpoint.address));
    flag_stack_flows(ENDPOINTS_BY_IFINDEX.get_ptr_mut(endpoint.ifindex));
}

/// Whether the stack carries this flow.
#[inline(always)]
pub fn is_stack_flow(flow: &FlowKey) -> bool {
    if is_tcp(flow) {
        STACK_FLOWS_TCP.get_ptr(flow).is_some()
    } else {
        STACK_FLOWS.get_ptr(flow).is_some()
    }
}

/// Takes a note away. Returns whether there was one.
#[inline(always)]
pub fn forget_stack_flow(flow: &FlowKey) -> bool {
    // Looking first: most flows have no note, and removing one takes a lock.
    is_stack_flow(flow)
        && if is_tcp(flow) {
            STACK_FLOWS_TCP.remove(flow).is_ok()
        } else {
            STACK_FLOWS.remove(flow).is_ok()
        }
}

/// Whether the first fragment of this packet went up the stack.
#[inline(always)]
pub fn is_stack_fragment(key: &FragmentKey) -> bool {
    STACK_FRAGMENTS.get_ptr(key).is_some()
}

/// Remembers whether the first fragment of this packet went up the stack. Identifications come round again, so that
/// an earlier packet's memory must not be taken for this one's.
#[inline(always)]
pub fn set_stack_fragment(key: &FragmentKey, up: bool) {
    let was = is_stack_fragment(key);
    if up && !was {
        // A full map makes room by itself; without memory the packet is lost as if a fragment were.
        let _ = STACK_FRAGMENTS.insert(key, 1, ANY);
    } else if was && !up {
        let _ = STACK_FRAGMENTS.remove(key);
    }
}

#[inline(always)]
fn is_tcp(flow: &FlowKey) -> bool {
    flow.protocol == u32::from(PROTOCOL_TCP)
}

#[inline(always)]
pub fn count_drop(reason: DropReason, bytes: u32) {
    count(DROPS.get_ptr_mut(reason.index()), bytes);
}

#[inline(always)]
pub fn count_forward(path: ForwardPath, bytes: u32) {
    count(FORWARDS.get_ptr_mut(path.index()), bytes);
}

#[inline(always)]
fn count(counter: Option<*mut Counter>, bytes: u32) {
    if let Some(counter) = counter {
        // SAFETY: this CPU's own slot; programs of one CPU do not preempt each other here.
        unsafe {
            (*counter).packets += 1;
            (*counter).bytes += u64::from(bytes);
        }
    }
}

#[inline(always)]
fn flag_stack_flows(endpoint: Option<*mut Endpoint>) {
    if let Some(endpoint) = endpoint {
        // SAFETY: no preallocation, see above. Only programs set the word and only to this value.
        unsafe {
            if !(*endpoint).has_stack_flows() {
                (*endpoint).program_flags = Endpoint::STACK_FLOWS;
            }
        }
    }
}
