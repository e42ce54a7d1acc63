//! Whether this kernel has what a lab needs, tried out in a namespace that ends with the attempt.

use std::fs;
use std::io;

use weft_kernel::NetNs;
use weft_kernel::rtnl::{LinkSpec, Rtnl, VxlanSpec};
use weft_model::{Mac, UserError, codes};

/// A feature, how it is switched on, and an attempt to use it.
type Probe = (&'static str, &'static str, fn(&NetNs) -> io::Result<()>);

const PROBES: &[Probe] = &[
    ("veth pairs", "CONFIG_VETH", veth),
    ("bridges", "CONFIG_BRIDGE", bridge),
    ("VXLAN devices in external mode", "CONFIG_VXLAN", vxlan),
    ("the BPF file system", "CONFIG_BPF_SYSCALL", bpffs),
    (
        "nftables",
        "CONFIG_NF_TABLES, CONFIG_NFT_NAT, CONFIG_NFT_MASQ",
        nftables,
    ),
];

/// Tries every feature.
///
/// # Errors
/// The first that is missing, with the kernel option that brings it.
pub fn check() -> Result<(), UserError> {
    let netns = NetNs::create().map_err(|error| missing("network namespaces", "CONFIG_NET_NS", &error))?;
    for (feature, option, attempt) in PROBES {
        attempt(&netns).map_err(|error| missing(feature, option, &error))?;
    }
    Ok(())
}

fn missing(feature: &str, option: &str, cause: &dyn std::fmt::Display) -> UserError {
    UserError::new(
        codes::KERNEL_FEATURE,
        format!(
            "kernel {} has no {feature}: {cause}",
            rustix::system::uname().release().to_string_lossy()
        ),
        format!("use a kernel built with {option}"),
    )
}

fn veth(netns: &NetNs) -> io::Result<()> {
    let mut rtnl = Rtnl::open_in(netns)?;
    Ok(rtnl.create_veth(&LinkSpec::new("probe0"), &LinkSpec::new("probe1"))?)
}

fn bridge(netns: &NetNs) -> io::Result<()> {
    let mut rtnl = Rtnl::open_in(netns)?;
    Ok(rtnl.create_bridge(&LinkSpec::new("probe2"))?)
}

fn vxlan(netns: &NetNs) -> io::Result<()> {
    let mut rtnl = Rtnl::open_in(netns)?;
    let spec = VxlanSpec {
        name: "probe3",
        mac: Mac([2, 0, 0, 0, 0, 1]),
        mtu: 1450,
        port: 8472,
    };
    Ok(rtnl.create_vxlan(&spec)?)
}

fn bpffs(_: &NetNs) -> io::Result<()> {
    let known = fs::read_to_string("/proc/filesystems")?;
    if known
        .lines()
        .any(|line| line.split_ascii_whitespace().last() == Some("bpf"))
    {
        Ok(())
    } else {
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "it is not in /proc/filesystems",
        ))
    }
}

fn nftables(netns: &NetNs) -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, netlink};
    netns
        .run(|| {
            rustix::net::socket_with(
                AddressFamily::NETLINK,
                SocketType::RAW,
                SocketFlags::CLOEXEC,
                Some(netlink::NETFILTER),
            )
        })?
        .map(drop)
        .map_err(io::Error::from)
}
