//! What is done to a node, and what it looks like.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Result, bail};

use crate::cache::Cache;
use crate::node;
use crate::state::Cluster;

/// What a command in all namespaces of a node prints.
///
/// # Errors
/// It fails: with what it said.
pub(super) fn read(cluster: &Cluster, cache: &Cache, node: &str, argv: &[&str]) -> Result<String> {
    let argv: Vec<String> = argv.iter().map(|arg| (*arg).to_owned()).collect();
    let mut command = node::exec(cluster, cache, node, &argv)?;
    output(&mut command)
}

/// What a command prints.
///
/// # Errors
/// It fails: with what it said.
pub(super) fn output(command: &mut Command) -> Result<String> {
    let output = command.output()?;
    let printed = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let argv: Vec<_> = command.get_args().map(|arg| arg.to_string_lossy()).collect();
        bail!("`{}` failed: {} {printed}", argv.join(" "), said.trim());
    }
    Ok(printed)
}

/// All of a node that Weft, or any pod network, changes: links, addresses, routes, rules, tables of nftables, settings,
/// files, pinned programs. What kube-proxy and the kubelet keep changing is left out.
pub(super) fn picture(
    cluster: &Cluster,
    cache: &Cache,
    node: &str,
) -> Result<BTreeMap<&'static str, String>> {
    let looks: [(&str, &str); 9] = [
        (
            "links",
            "ip -o link | sed 's/ state.*//; s/ mtu \\([0-9]*\\).*/ mtu \\1/' | cut -d' ' -f2-",
        ),
        ("addresses", "ip -o -4 address | awk '{print $2, $4}'"),
        (
            "routes",
            "ip route show table all | grep -v '^local\\|^broadcast' | sort",
        ),
        ("rules", "ip rule"),
        (
            "filters",
            "for d in $(ls /sys/class/net); do tc filter show dev $d ingress; tc qdisc show dev $d; done 2>/dev/null | grep -v noqueue; true",
        ),
        ("tables", "nft list tables | grep -v kube-proxy | sort; true"),
        (
            "settings",
            "cd /proc/sys/net && for f in ipv4/ip_forward ipv4/conf/*/rp_filter ipv4/conf/*/forwarding ipv4/conf/*/accept_local \
             ipv4/conf/*/proxy_arp ipv4/conf/*/route_localnet ipv4/conf/*/arp_ignore ipv4/conf/*/send_redirects; \
             do echo $f $(cat $f); done",
        ),
        (
            "files",
            "for d in /opt/cni /etc/cni /var/lib/weft /run/weft; do [ -e $d ] && find $d -exec stat -c '%n %a %s' {} +; done | sort; true",
        ),
        ("pins", "find /sys/fs/bpf -mindepth 1 | sort"),
    ];
    let mut picture = BTreeMap::new();
    for (name, script) in looks {
        picture.insert(name, read(cluster, cache, node, &["sh", "-c", script])?);
    }
    Ok(picture)
}

/// What is in one picture and not in the other, in words; nothing if they are alike.
pub(super) fn difference(
    before: &BTreeMap<&'static str, String>,
    after: &BTreeMap<&'static str, String>,
) -> Option<String> {
    let mut found = Vec::new();
    for (name, was) in before {
        let is = after.get(name).map_or("", String::as_str);
        let only = |one: &str, other: &str| -> Vec<String> {
            let lines: Vec<&str> = other.lines().collect();
            one.lines()
                .filter(|line| !lines.contains(line))
                .map(str::to_owned)
                .collect()
        };
        found.extend(
            only(was, is)
                .into_iter()
                .map(|line| format!("{name}: gone: {line}")),
        );
        found.extend(
            only(is, was)
                .into_iter()
                .map(|line| format!("{name}: new: {line}")),
        );
    }
    (!found.is_empty()).then(|| found.join("; "))
}
