use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// One CPU's share of a counter.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Counter {
    /// Packets; a GSO super-packet counts once.
    pub packets: u64,
    /// Bytes from the Ethernet header on.
    pub bytes: u64,
}

macro_rules! counted {
    ($(#[$meta:meta])* $name:ident { $($variant:ident = $sentence:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u32)]
        pub enum $name {
            $(#[doc = $sentence] $variant,)+
        }

        impl $name {
            /// Every one, in the order of the map's index.
            pub const ALL: [Self; [$(Self::$variant),+].len()] = [$(Self::$variant),+];

            /// Index in the per-CPU array.
            #[inline(always)]
            #[must_use]
            pub const fn index(self) -> u32 {
                self as u32
            }

            /// Stable name: metrics, CLI and docs use it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => stringify!($variant),)+ }
            }

            /// One sentence for people.
            #[must_use]
            pub const fn sentence(self) -> &'static str {
                match self { $(Self::$variant => $sentence,)+ }
            }
        }
    };
}

counted! {
    /// Why a program dropped a packet. Every drop has exactly one.
    DropReason {
        NoConfig = "The node's datapath has not been configured yet.",
        NoEndpoint = "No live pod of this node has the interface or the address.",
        Malformed = "The packet is too short or its IPv4 header is wrong.",
        Ipv6 = "IPv6 is not carried.",
        EtherType = "The frame is neither IPv4 nor ARP.",
        VlanTag = "The frame has a VLAN tag.",
        NotUnicast = "A pod sent a frame to another MAC address than its gateway's.",
        SpoofedAddress = "A pod sent a packet with a source address that is not its own.",
        SpoofedMac = "A pod sent a frame with a source MAC address that is not its own.",
        SpoofedArp = "A pod's ARP message claims an address that is not its own.",
        ArpTarget = "A pod asked by ARP for another address than its gateway.",
        DhcpServer = "A pod sent a packet as a DHCP server.",
        TunnelPort = "A pod sent UDP to a node's VXLAN port.",
        Loopback = "A pod sent a packet to a loopback address.",
        NoBlock = "The destination is in the pod CIDR, in a block that no node holds.",
        TooBig = "The packet is longer than the overlay carries and the stack would not say so to the sender.",
        TunnelKey = "The kernel refused the tunnel parameters.",
        ForeignSourceFromStack = "The node's stack sent a packet to the overlay whose source is neither the node nor a pod of it.",
        NoOverlayRoute = "The node's stack sent a packet to the overlay that is for no other node and no pod of one.",
        NoTunnelKey = "A packet arrived at the overlay device without tunnel parameters.",
        UnknownNode = "An overlay packet came from an underlay address that is no node of the cluster.",
        ForeignSource = "A node sent an overlay packet whose source is neither the node nor in its blocks.",
        ForgedIdentity = "An overlay packet of a pod claims to be a node's, or the reverse.",
        NodeToNode = "A node sent an overlay packet to this node itself; nodes talk on the underlay.",
        NotForThisNode = "An overlay packet is for an address that is not in this node's blocks.",
        UnmasqueradedEgress = "A packet with a pod's source address was about to leave by the uplink.",
        UnderlayToPod = "A packet for a pod arrived at the uplink outside the overlay.",
    }
}

counted! {
    /// Which way a packet was let through.
    ForwardPath {
        PodToPod = "Pod to pod of the same node, past the stack.",
        PodToOverlay = "Pod to another node or a pod there, past the stack.",
        PodToStack = "Pod to the node's stack: the node itself, outside, or a flow translated there.",
        PodArpReply = "ARP answered for the gateway.",
        OverlayToPod = "Overlay to a pod, past the stack.",
        OverlayToStack = "Overlay to the node's stack: the node itself, or a flow translated there.",
        NodeToOverlay = "The node's stack to a pod of another node, as the node.",
        StackToOverlay = "The node's stack to another node or a pod there, as a pod of this node.",
        StackToPod = "The node's stack to a pod.",
    }
}
