//! A safe face of the socket buffer and of the few helpers the programs use.
#![expect(
    unsafe_code,
    reason = "helpers and packet memory are raw pointers; this module is their only user"
)]

use core::mem::{self, MaybeUninit};
use core::ptr;

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
        BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_DONT_FRAGMENT, BPF_F_ZERO_CSUM_TX,
        bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, bpf_hdr_start_off::BPF_HDR_START_NET, bpf_redir_neigh,
    },
    helpers::generated as helpers,
    programs::TcContext,
};
use weft_abi::{
    Address, Mac, VXLAN_OVERHEAD, Vni,
    packet::ETHERNET_LEN,
    tunnel::{OUTER_HALFWORDS, TUNNEL_TTL},
};

/// `PACKET_HOST` (include/uapi/linux/if_packet.h): the frame is for this host.
const PACKET_HOST: u32 = 0;
/// `AF_INET` (include/linux/socket.h).
const AF_INET: u32 = 2;
/// Differentiated services (RFC 2474), without congestion, which the overlay device carries over by itself.
const DIFFERENTIATED_SERVICES: u8 = 0xfc;

/// The packet a program runs for.
pub struct Skb {
    raw: *mut __sk_buff,
    /// Where the frame begins that [`load`](Self::load) counts from.
    base: u32,
}

/// `struct bpf_tunnel_key` as it was before `local_ipv4` was added in 6.0; later kernels still take that size.
#[repr(C)]
struct RawTunnelKey {
    id: u32,
    /// Host byte order, unlike every other address here.
    remote_ipv4: u32,
    rest_of_remote_ipv6: [u32; 3],
    /// Type of service, time to live and flags; the last are not used.
    tos_ttl_flags: [u8; 4],
    label: u32,
}

/// Where an overlay packet came from.
pub struct TunnelKey {
    /// Outer source address.
    pub remote: Address,
    pub vni: Vni,
}

// === impl Skb ===

impl Skb {
    #[inline(always)]
    pub fn new(ctx: &TcContext) -> Self {
        Self {
            raw: ctx.skb.skb,
            base: 0,
        }
    }

    /// The packet as it will be without outer headers, for [`load`](Self::load).
    #[inline(always)]
    pub fn inner(&self) -> Self {
        Self {
            raw: self.raw,
            base: VXLAN_OVERHEAD,
        }
    }

    /// Length in bytes from the Ethernet header on.
    #[inline(always)]
    pub fn len(&self) -> u32 {
        // SAFETY: the kernel hands every program a valid context.
        unsafe { (*self.raw).len }
    }

    /// EtherType, host byte order.
    #[inline(always)]
    pub fn protocol(&self) -> u16 {
        // SAFETY: as above. The field holds a 16-bit number in network order.
        u16::from_be(unsafe { (*self.raw).protocol } as u16)
    }

    /// Whether a VLAN tag travels beside the packet data.
    #[inline(always)]
    pub fn has_vlan_tag(&self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.raw).vlan_present != 0 }
    }

    /// Whether the frame was addressed to the MAC address of the interface it arrived at.
    #[inline(always)]
    pub fn is_for_this_host(&self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.raw).pkt_type == PACKET_HOST }
    }

    /// Interface the program is attached to.
    #[inline(always)]
    pub fn ifindex(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.raw).ifindex }
    }

    /// Payload bytes per segment of a super-packet, 0 for any other.
    #[inline(always)]
    pub fn gso_size(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.raw).gso_size }
    }

    /// The first `N` halfwords of the frame, if they are in the linear part.
    #[inline(always)]
    pub fn linear<const N: usize>(&self) -> Option<&[u16; N]> {
        // SAFETY: as above; the verifier turns these two fields into packet pointers.
        let (start, end) = unsafe { ((*self.raw).data as usize, (*self.raw).data_end as usize) };
        if start + mem::size_of::<[u16; N]>() > end {
            return None;
        }
        // SAFETY: the bytes from `start` are packet memory, as just compared, and stay so while `self` is borrowed:
        // everything that moves packet memory takes `&mut self`. Frames start at even addresses, and where one did not,
        // the machines that load them would not mind.
        Some(unsafe { &*(start as *const [u16; N]) })
    }

    /// The first `N` halfwords of the frame, pulled into the linear part if need be. `None` when the frame is shorter.
    #[inline(always)]
    pub fn head<const N: usize>(&mut self) -> Option<&[u16; N]> {
        if self.linear::<N>().is_none() {
            // SAFETY: valid context. On failure the packet stays as it is.
            unsafe { helpers::bpf_skb_pull_data(self.raw, mem::size_of::<[u16; N]>() as u32) };
        }
        self.linear()
    }

    /// The same for writing, without pulling.
    #[inline(always)]
    pub fn head_mut<const N: usize>(&mut self) -> Option<&mut [u16; N]> {
        // SAFETY: as for `linear`; `&mut self` makes the reference the only one. The kernel gives a program that
        // writes a packet of its own.
        let (start, end) = unsafe { ((*self.raw).data as usize, (*self.raw).data_end as usize) };
        if start + mem::size_of::<[u16; N]>() > end {
            return None;
        }
        // SAFETY: as above.
        Some(unsafe { &mut *(start as *mut [u16; N]) })
    }

    /// Copies `N` bytes at `offset` from the start of the frame. `None` when the frame ends before.
    #[inline(always)]
    pub fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        // Not zeroed first, which the compiler may make a call to memset of.
        let mut bytes = MaybeUninit::<[u8; N]>::uninit();
        // SAFETY: valid context; the helper writes N bytes or fails.
        let error = unsafe {
            helpers::bpf_skb_load_bytes(
                self.raw.cast(),
                self.base + offset,
                bytes.as_mut_ptr().cast(),
                N as u32,
            )
        };
        if error != 0 {
            return None;
        }
        // SAFETY: the helper succeeded and has written all of it.
        Some(unsafe { bytes.assume_init() })
    }

    /// Copies `N` bytes at `offset` from the start of the IP header, whatever link-layer header is in front of it.
    #[inline(always)]
    pub fn load_network<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let mut bytes = MaybeUninit::<[u8; N]>::uninit();
        // SAFETY: valid context; the helper writes N bytes or fails.
        let error = unsafe {
            helpers::bpf_skb_load_bytes_relative(
                self.raw.cast(),
                offset,
                bytes.as_mut_ptr().cast(),
                N as u32,
                BPF_HDR_START_NET as u32,
            )
        };
        if error != 0 {
            return None;
        }
        // SAFETY: the helper succeeded and has written all of it.
        Some(unsafe { bytes.assume_init() })
    }

    /// Replaces the MAC addresses. `None` when there is no Ethernet header.
    #[inline(always)]
    pub fn set_macs(&mut self, destination: Mac, source: Mac) -> Option<()> {
        // Element by element: of an array the compiler makes a call to memmove.
        let [d0, d1, d2, s0, s1, s2] = self.head_mut()?;
        [*d0, *d1, *d2] = destination.halfwords();
        [*s0, *s1, *s2] = source.halfwords();
        Some(())
    }

    /// Makes the stack take the frame for its own.
    #[inline(always)]
    pub fn set_for_this_host(&mut self) {
        // SAFETY: valid context. The helper refuses nothing here: both types are packet types.
        unsafe { helpers::bpf_skb_change_type(self.raw, PACKET_HOST) };
    }

    /// Tunnel parameters of the packet, received ones or those set before; `None` when it has none.
    #[inline(always)]
    pub fn tunnel_key(&self) -> Option<TunnelKey> {
        let mut key = MaybeUninit::<RawTunnelKey>::uninit();
        // SAFETY: valid context; the helper writes the given size, which is the struct's.
        let error = unsafe {
            helpers::bpf_skb_get_tunnel_key(self.raw, key.as_mut_ptr().cast(), RawTunnelKey::SIZE, 0)
        };
        if error != 0 {
            return None;
        }
        // SAFETY: the helper succeeded and has written all of it.
        let key = unsafe { key.assume_init_ref() };
        Some(TunnelKey {
            remote: Address::v4(key.remote_ipv4.to_be_bytes()),
            vni: Vni::from_raw(key.id),
        })
    }

    /// Sets where the overlay device sends the packet, as what type of service, and whether routers on the way have to
    /// leave it `whole`. `None` when the address is not IPv4 or the kernel refuses.
    #[inline(always)]
    pub fn set_tunnel_key(&mut self, remote: Address, vni: Vni, service: u8, whole: bool) -> Option<()> {
        let key = RawTunnelKey::new(vni.raw(), u32::from_be_bytes(remote.as_v4()?), service);
        // The inner packet has its own checksums, and the outer one costs a pass over the payload.
        let flags = u64::from(BPF_F_ZERO_CSUM_TX | if whole { BPF_F_DONT_FRAGMENT } else { 0 });
        // SAFETY: valid context; the helper reads the given size, which is the struct's.
        let error = unsafe {
            helpers::bpf_skb_set_tunnel_key(
                self.raw,
                key.as_ptr().cast_mut().cast(),
                RawTunnelKey::SIZE,
                flags,
            )
        };
        if error == 0 { Some(()) } else { None }
    }

    /// Hash of the packet's flow.
    #[inline(always)]
    pub fn flow_hash(&mut self) -> u32 {
        // SAFETY: valid context.
        unsafe { helpers::bpf_get_hash_recalc(self.raw) }
    }

    /// Makes room for [`write_outer`](Self::write_outer) behind the Ethernet header, and tells the kernel what goes
    /// there, so that it segments super-packets and sums their payload as for its own tunnels. `None`, and the packet as
    /// it was, when the kernel cannot.
    #[inline(always)]
    pub fn grow(&mut self) -> Option<()> {
        // BPF_F_ADJ_ROOM_ENCAP_L2(len), a macro in C.
        const INNER_ETHERNET: u64 = (ETHERNET_LEN as u64) << 56;
        let flags = u64::from(
            BPF_F_ADJ_ROOM_FIXED_GSO
                | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4
                | BPF_F_ADJ_ROOM_ENCAP_L4_UDP
                | BPF_F_ADJ_ROOM_ENCAP_L2_ETH,
        );
        self.adjust(VXLAN_OVERHEAD as i32, flags | INNER_ETHERNET)
    }

    /// Writes outer headers behind the Ethernet header.
    #[inline(always)]
    pub fn write_outer(&mut self, headers: &[u16; OUTER_HALFWORDS]) -> Option<()> {
        const ETHERNET_HALFWORDS: usize = ETHERNET_LEN as usize / 2;
        let frame = self.head_mut::<{ ETHERNET_HALFWORDS + OUTER_HALFWORDS }>()?;
        // Element by element: of an array the compiler makes a call to memmove.
        let mut at = 0;
        while at < OUTER_HALFWORDS {
            frame[ETHERNET_HALFWORDS + at] = headers[at];
            at += 1;
        }
        Some(())
    }

    /// Removes outer headers. `None`, and the packet as it was, when the kernel cannot.
    #[inline(always)]
    pub fn shrink(&mut self) -> Option<()> {
        self.adjust(-(VXLAN_OVERHEAD as i32), u64::from(BPF_F_ADJ_ROOM_FIXED_GSO))
    }

    /// Marks congestion on the packet; has no effect where its transport does not understand that.
    #[inline(always)]
    pub fn set_congested(&mut self) {
        // SAFETY: valid context.
        unsafe { helpers::bpf_skb_ecn_set_ce(self.raw) };
    }

    #[inline(always)]
    fn adjust(&mut self, by: i32, flags: u64) -> Option<()> {
        // SAFETY: valid context. `&mut self`: what pointed into the packet is gone.
        let error = unsafe { helpers::bpf_skb_adjust_room(self.raw, by, BPF_ADJ_ROOM_MAC, flags) };
        if error == 0 { Some(()) } else { None }
    }
}

// === impl RawTunnelKey ===

impl RawTunnelKey {
    const SIZE: u32 = mem::size_of::<Self>() as u32;

    #[inline(always)]
    fn new(id: u32, remote_ipv4: u32, service: u8) -> MaybeUninit<Self> {
        let mut key = MaybeUninit::<Self>::uninit();
        let words = key.as_mut_ptr().cast::<u32>();
        // SAFETY: seven words are the whole struct. Volatile, or the compiler makes a call to memset of the zeros.
        unsafe {
            words.write_volatile(id);
            words.add(1).write_volatile(remote_ipv4);
            words.add(2).write_volatile(0);
            words.add(3).write_volatile(0);
            words.add(4).write_volatile(0);
            words.add(5).write_volatile(u32::from_ne_bytes([
                service & DIFFERENTIATED_SERVICES,
                TUNNEL_TTL,
                0,
                0,
            ]));
            words.add(6).write_volatile(0);
        }
        key
    }
}

/// Sends the packet out of `ifindex`.
#[inline(always)]
pub fn redirect(ifindex: u32) -> i32 {
    // SAFETY: takes integers only.
    unsafe { helpers::bpf_redirect(ifindex, 0) as i32 }
}

/// Sends the packet out of `ifindex` to the neighbour with the IPv4 address `next_hop`, found out if need be; where that
/// is all zero, to the one that the node's routes say.
#[inline(always)]
pub fn redirect_neigh(ifindex: u32, next_hop: [u8; 4]) -> i32 {
    let next_hop = u32::from_ne_bytes(next_hop);
    if next_hop == 0 {
        // SAFETY: without parameters the helper asks the routes, and takes integers only.
        return unsafe { helpers::bpf_redirect_neigh(ifindex, ptr::null_mut(), 0, 0) as i32 };
    }
    let mut hop = MaybeUninit::<bpf_redir_neigh>::uninit();
    let words = hop.as_mut_ptr().cast::<u32>();
    // SAFETY: five words are the whole struct: family, address, and what only the other family has. Volatile, or the
    // compiler makes a call to memset of the zeros. The helper reads the given size, which is the struct's.
    unsafe {
        words.write_volatile(AF_INET);
        words.add(1).write_volatile(next_hop);
        words.add(2).write_volatile(0);
        words.add(3).write_volatile(0);
        words.add(4).write_volatile(0);
        helpers::bpf_redirect_neigh(
            ifindex,
            hop.as_mut_ptr(),
            mem::size_of::<bpf_redir_neigh>() as i32,
            0,
        ) as i32
    }
}

/// Hands the packet to the peer of the veth `ifindex`, in the peer's namespace.
#[inline(always)]
pub fn redirect_peer(ifindex: u32) -> i32 {
    // SAFETY: takes integers only.
    unsafe { helpers::bpf_redirect_peer(ifindex, 0) as i32 }
}
