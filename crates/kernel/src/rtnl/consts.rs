//! Numbers of include/uapi/linux/{rtnetlink,fib_rules,if_link,if_addr,neighbour,netconf,veth}.h.

pub(super) const RTM_NEWLINK: u16 = 16;
pub(super) const RTM_DELLINK: u16 = 17;
pub(super) const RTM_GETLINK: u16 = 18;
pub(super) const RTM_SETLINK: u16 = 19;
pub(super) const RTM_NEWADDR: u16 = 20;
pub(super) const RTM_DELADDR: u16 = 21;
pub(super) const RTM_GETADDR: u16 = 22;
pub(super) const RTM_NEWROUTE: u16 = 24;
pub(super) const RTM_DELROUTE: u16 = 25;
pub(super) const RTM_GETROUTE: u16 = 26;
pub(super) const RTM_NEWNEIGH: u16 = 28;
pub(super) const RTM_DELNEIGH: u16 = 29;
pub(super) const RTM_GETNEIGH: u16 = 30;
pub(super) const RTM_NEWRULE: u16 = 32;
pub(super) const RTM_DELRULE: u16 = 33;
pub(super) const RTM_GETRULE: u16 = 34;
pub(super) const RTM_DELQDISC: u16 = 37;
pub(super) const RTM_DELTFILTER: u16 = 45;
pub(super) const RTM_NEWNETCONF: u16 = 80;
pub(super) const RTM_GETNETCONF: u16 = 82;

pub(super) const NETCONFA_IFINDEX: u16 = 1;
pub(super) const NETCONFA_RP_FILTER: u16 = 3;
/// -1, not a link's.
pub(super) const NETCONFA_IFINDEX_ALL: u32 = u32::MAX;
/// -2, what new links begin with.
pub(super) const NETCONFA_IFINDEX_DEFAULT: u32 = u32::MAX - 1;

pub(super) const IFLA_ADDRESS: u16 = 1;
pub(super) const IFLA_IFNAME: u16 = 3;
pub(super) const IFLA_MTU: u16 = 4;
pub(super) const IFLA_LINK: u16 = 5;
pub(super) const IFLA_MASTER: u16 = 10;
pub(super) const IFLA_OPERSTATE: u16 = 16;
pub(super) const IFLA_LINKINFO: u16 = 18;
pub(super) const IFLA_IFALIAS: u16 = 20;
pub(super) const IFLA_GROUP: u16 = 27;
pub(super) const IFLA_NET_NS_FD: u16 = 28;
pub(super) const IFLA_EXT_MASK: u16 = 29;
pub(super) const IFLA_LINK_NETNSID: u16 = 37;

pub(super) const IFLA_INFO_KIND: u16 = 1;
pub(super) const IFLA_INFO_DATA: u16 = 2;

pub(super) const VETH_INFO_PEER: u16 = 1;

pub(super) const IFLA_VXLAN_LEARNING: u16 = 7;
pub(super) const IFLA_VXLAN_PORT: u16 = 15;
pub(super) const IFLA_VXLAN_COLLECT_METADATA: u16 = 25;

pub(super) const IFLA_MACVLAN_MODE: u16 = 1;
pub(super) const MACVLAN_MODE_BRIDGE: u32 = 4;

/// Leave statistics out of answers about links.
pub(super) const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;

pub(super) const IFA_ADDRESS: u16 = 1;
pub(super) const IFA_LOCAL: u16 = 2;
pub(super) const IFA_FLAGS: u16 = 8;
pub(super) const IFA_F_NODAD: u32 = 0x02;
pub(super) const IFA_F_PERMANENT: u32 = 0x80;
pub(super) const IFA_F_NOPREFIXROUTE: u32 = 0x200;

pub(super) const RTA_DST: u16 = 1;
pub(super) const RTA_OIF: u16 = 4;
pub(super) const RTA_GATEWAY: u16 = 5;
pub(super) const RTA_PRIORITY: u16 = 6;
pub(super) const RTA_PREFSRC: u16 = 7;
pub(super) const RTA_METRICS: u16 = 8;
pub(super) const RTA_MULTIPATH: u16 = 9;
pub(super) const RTA_TABLE: u16 = 15;
pub(super) const RTA_VIA: u16 = 18;
pub(super) const RTA_ENCAP_TYPE: u16 = 21;
pub(super) const RTA_NH_ID: u16 = 30;
pub(super) const RTAX_MTU: u16 = 2;

pub(super) const RTM_F_CLONED: u32 = 0x200;
pub(super) const RTM_F_FIB_MATCH: u32 = 0x2000;
pub(super) const RTNH_F_ONLINK: u32 = 4;

pub(super) const FRA_PRIORITY: u16 = 6;
pub(super) const FRA_TABLE: u16 = 15;
pub(super) const FR_ACT_TO_TBL: u8 = 1;

pub(super) const NDA_DST: u16 = 1;
pub(super) const NDA_LLADDR: u16 = 2;
pub(super) const NDA_IFINDEX: u16 = 8;
pub(super) const NUD_PERMANENT: u16 = 0x80;

pub(super) const RTNLGRP_LINK: u32 = 1;
pub(super) const RTNLGRP_NEIGH: u32 = 3;
pub(super) const RTNLGRP_TC: u32 = 4;
pub(super) const RTNLGRP_IPV4_IFADDR: u32 = 5;
pub(super) const RTNLGRP_IPV4_ROUTE: u32 = 7;
pub(super) const RTNLGRP_IPV4_RULE: u32 = 8;
pub(super) const RTNLGRP_IPV6_IFADDR: u32 = 9;
pub(super) const RTNLGRP_IPV6_ROUTE: u32 = 11;
