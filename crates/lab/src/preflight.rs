//! Whether this kernel has what a lab needs, tried out in a namespace that ends with the attempt.

use std::fs;
use std::io;

use weft_kernel::NetNs;
use weft_kernel::nft::{Action, Base, Chain, ChainKind, Hook, Match, Nft, Rule, Table};
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

/// The oldest kernel that the datapath's programs are made for: major and minor version.
const OLDEST: (u32, u32) = (5, 15);

/// Compares the kernel's version, and tries every feature.
///
/// # Errors
/// The kernel is too old, or the first feature that is missing, with the kernel option that brings it.
pub fn check() -> Result<(), UserError> {
    check_release(&release())?;
    let netns = NetNs::create().map_err(|error| missing("network namespaces", "CONFIG_NET_NS", &error))?;
    attempt_all(PROBES, &netns)
}

fn attempt_all(probes: &[Probe], netns: &NetNs) -> Result<(), UserError> {
    probes.iter().try_for_each(|(feature, option, attempt)| {
        attempt(netns).map_err(|error| missing(feature, option, &error))
    })
}

fn release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// What has no version that can be read is given the benefit of the doubt: the probes tell.
fn check_release(release: &str) -> Result<(), UserError> {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|number| number.parse().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) < OLDEST => Err(UserError::new(
            codes::KERNEL_TOO_OLD,
            format!("this is Linux {release}"),
            format!("use Linux {}.{} or later", OLDEST.0, OLDEST.1),
        )),
        _ => Ok(()),
    }
}

fn missing(feature: &str, option: &str, cause: &dyn std::fmt::Display) -> UserError {
    UserError::new(
        codes::KERNEL_FEATURE,
        format!("kernel {} has no {feature}: {cause}", release()),
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

/// Masquerading is what needs most of it.
fn nftables(netns: &NetNs) -> io::Result<()> {
    const NAT_SOURCE: i32 = 100;
    let masquerade = Rule {
        comment: "",
        when: vec![Match::Protocol(6)],
        counted: true,
        then: Action::Masquerade(None),
    };
    let table = Table {
        name: "probe".to_owned(),
        comment: String::new(),
        chains: vec![Chain {
            name: "postrouting",
            base: Some(Base {
                kind: ChainKind::Nat,
                hook: Hook::Postrouting,
                priority: NAT_SOURCE,
            }),
            rules: vec![masquerade],
        }],
    };
    Nft::open_in(netns)?.apply(&table.compile()?)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_a_feature_is_told_which_and_how_to_get_it() {
        let probes: &[Probe] = &[
            ("wheels", "CONFIG_WHEELS", |_| Ok(())),
            (
                "wings",
                "CONFIG_WINGS",
                |_| Err(io::ErrorKind::Unsupported.into()),
            ),
            ("fins", "CONFIG_FINS", |_| Err(io::ErrorKind::Other.into())),
        ];
        let error = attempt_all(probes, &NetNs::current().unwrap()).unwrap_err();
        assert_eq!(
            (error.code(), error.message(), error.next()),
            (
                codes::KERNEL_FEATURE,
                format!("kernel {} has no wings: unsupported", release()).as_str(),
                "use a kernel built with CONFIG_WINGS"
            )
        );
    }

    #[test]
    fn kernels_before_5_15_are_too_old() {
        for release in ["5.14.21-generic", "4.19.0", "5.4"] {
            let error = check_release(release).unwrap_err();
            assert_eq!(
                (error.code(), error.message().to_owned()),
                (codes::KERNEL_TOO_OLD, format!("this is Linux {release}"))
            );
        }
        for release in ["5.15.0", "6.1.0-rc3+", "10.0", "a kernel of one's own"] {
            assert_eq!(check_release(release), Ok(()));
        }
    }
}
