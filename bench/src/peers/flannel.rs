//! flanneld with etcd and VXLAN; the plugins bridge and host-local get the configuration that flannel's meta-plugin
//! makes of its subnet file.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use ipnet::Ipv4Net;
use serde_json::json;

use super::etcd::Etcd;
use super::{Attach, Nodes, fresh, write_conf};
use crate::left::Books;
use crate::netns::Underlay;
use crate::process::Process;
use crate::{interrupt, modules};

const SLOT: u8 = 4;
const PORT: u16 = 2379;
/// Longest time until a node has its subnet.
const PATIENCE: Duration = Duration::from_secs(30);

pub(super) fn start(cache: &Path, out: &Path, underlay: &Underlay) -> Result<Nodes> {
    let plugins = modules::PLUGINS.programs(cache)?;
    let flanneld = modules::FLANNEL.programs(cache)?.join("flanneld");
    let dir = out.join("flannel");
    fresh(&dir)?;
    let nodes = [1, 2].map(|node| {
        let address = Ipv4Addr::new(172, 30, 0, 10 * SLOT + node);
        underlay.routed_node(&format!("fl{node}"), address)
    });
    let [first, second] = nodes;
    let nodes = [first?, second?];
    let etcd = Etcd::start(cache, &dir, underlay, PORT)?;
    etcd.put(
        "/coreos.com/network/config",
        r#"{"Network":"10.244.0.0/16","SubnetLen":23,"Backend":{"Type":"vxlan"}}"#,
    )?;

    let mut agents = Vec::new();
    for (number, node) in (1..).zip(&nodes) {
        let mut command = node.place().command(&flanneld);
        command.args([
            &format!("--etcd-endpoints={}", etcd.url),
            "--iface=eth0",
            "--ip-masq",
            "--healthz-port=0",
        ]);
        command.arg(format!(
            "--subnet-file={}",
            dir.join(format!("{number}.env")).display()
        ));
        agents.push(Process::start(&format!("flanneld-{number}"), command, &dir)?);
    }
    let mut attach = Vec::new();
    for ((number, node), agent) in (1..).zip(&nodes).zip(&mut agents) {
        let conf = configure(&dir, number, agent)?;
        attach.push(Attach {
            node: node.place(),
            conf,
            plugins: plugins.clone(),
            books: Books::Files(dir.join(format!("addresses-{number}/cbr0"))),
        });
    }
    let [version, reference] = [modules::FLANNEL.version, modules::PLUGINS.version];
    Ok(Nodes {
        name: "flannel",
        about: format!("flanneld {version}, VXLAN, with bridge + host-local {reference}"),
        nodes,
        attach: super::two(attach)?,
        slot: SLOT.into(),
        agents,
        kept: vec![Box::new(etcd)],
    })
}

/// Waits for a node's subnet, and writes what flannel's meta-plugin would hand on.
fn configure(dir: &Path, number: usize, agent: &mut Process) -> Result<std::path::PathBuf> {
    let file = dir.join(format!("{number}.env"));
    let start = Instant::now();
    let text = loop {
        interrupt::check()?;
        agent.usage()?;
        match std::fs::read_to_string(&file) {
            Ok(text) if text.contains("FLANNEL_IPMASQ") => break text,
            _ if start.elapsed() > PATIENCE => bail!(
                "flanneld wrote no {} within {PATIENCE:?}\n  next: see the logs in {}",
                file.display(),
                dir.display()
            ),
            _ => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    let values: HashMap<&str, &str> = text.lines().filter_map(|line| line.split_once('=')).collect();
    let value = |name: &str| {
        values
            .get(name)
            .with_context(|| format!("no {name} in {}", file.display()))
    };
    let subnet: Ipv4Net = value("FLANNEL_SUBNET")?.parse().context("parse FLANNEL_SUBNET")?;
    let mtu: u32 = value("FLANNEL_MTU")?.parse().context("parse FLANNEL_MTU")?;
    let conf = dir.join(format!("{number}.conflist"));
    write_conf(
        &conf,
        "cbr0",
        &json!({
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": true,
            "isDefaultGateway": true,
            "hairpinMode": true,
            "ipMasq": false,
            "mtu": mtu,
            "ipam": {
                "type": "host-local",
                "dataDir": dir.join(format!("addresses-{number}")),
                "ranges": [[{"subnet": subnet.trunc()}]],
                "routes": [{"dst": "10.244.0.0/16"}],
            },
        }),
    )?;
    Ok(conf)
}
