//! What makes the pods' network: Weft by its manifests, or the reference plugins with a route to every node.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context, Result};
use ipnet::Ipv4Net;
use serde_json::{Value, json};
use weft_kernel::NetNs;
use weft_kernel::nft::{Action, Base, Chain, ChainKind, Hook, Match, Nft, Rule, Table};
use weft_kernel::rtnl::{Route, Rtnl};
use weft_model::TransportChoice;

use crate::kubectl::Kubectl;
use crate::state::{Cluster, Config, Ipam, Proxy};
use crate::vnet;

/// `NF_IP_PRI_NAT_SRC` of include/uapi/linux/netfilter_ipv4.h.
const NAT_SOURCE: i32 = 100;

/// Installs Weft as its README says, with this cluster's addresses.
///
/// # Errors
/// The manifests can't be read, or the API refuses them.
pub fn install_weft(cluster: &Cluster, kubectl: &Kubectl, manifests: &Path) -> Result<()> {
    install(cluster, kubectl, manifests, None)
}

/// Installs Weft for the nodes that have `label=weft`, beside what the others have.
///
/// # Errors
/// As for [`install_weft`].
pub fn install_weft_beside(
    cluster: &Cluster,
    kubectl: &Kubectl,
    manifests: &Path,
    label: &str,
) -> Result<()> {
    install(cluster, kubectl, manifests, Some(label))
}

fn install(cluster: &Cluster, kubectl: &Kubectl, manifests: &Path, label: Option<&str>) -> Result<()> {
    let crds = manifests.join("helm/weft/crds");
    let crds = crds.to_str().context("a path that is not text")?;
    kubectl.read(&["apply", "--server-side", "--filename", crds])?;
    kubectl.read(&[
        "wait",
        "--for=condition=Established",
        "--timeout=30s",
        "--filename",
        crds,
    ])?;
    let path = manifests.join("manifests/weft.yaml");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    kubectl.apply(&adapt(&text, &cluster.config, cluster.api_address, label)?)
}

/// The manifests with the values that `helm template` would have got.
fn adapt(text: &str, config: &Config, api: Ipv4Addr, label: Option<&str>) -> Result<String> {
    let mut objects: Vec<Value> = serde_saphyr::from_multiple(text).context("read Weft's manifests")?;
    objects.retain(|object| !object.is_null());
    for object in &mut objects {
        match object["kind"].as_str() {
            Some("PodPool") => {
                object["spec"]["cidrs"] = json!([config.pod_cidr]);
                if config.ipam == Ipam::Node {
                    object["spec"]["ipam"] = json!("node");
                }
                if let Some(label) = label {
                    object["spec"]["nodeSelector"] = json!({"matchLabels": {label: "weft"}});
                }
            }
            Some("DaemonSet" | "Deployment") => {
                let agents = object["kind"] == "DaemonSet";
                if let (true, Some(label)) = (agents, label) {
                    object["spec"]["template"]["spec"]["nodeSelector"][label] = json!("weft");
                }
                let containers = object["spec"]["template"]["spec"]["containers"].as_array_mut();
                for container in containers.into_iter().flatten() {
                    if agents {
                        choose_transport(container, config.transport)?;
                        chain_portmap(container);
                    }
                    // Without kube-proxy the Service `kubernetes` leads nowhere.
                    if config.proxy == Proxy::None {
                        append(
                            &mut container["env"],
                            [
                                json!({"name": "KUBERNETES_SERVICE_HOST", "value": api}),
                                json!({"name": "KUBERNETES_SERVICE_PORT", "value": "6443"}),
                            ],
                        );
                    }
                }
            }
            _ => {}
        }
    }
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    Ok(list.to_string())
}

/// What `agent.transport` is for.
fn choose_transport(container: &mut Value, transport: TransportChoice) -> Result<()> {
    const FLAG: &str = "--transport=";
    let mut args = container["args"].as_array_mut().into_iter().flatten();
    let flag = args
        .find(|arg| arg.as_str().is_some_and(|arg| arg.starts_with(FLAG)))
        .with_context(|| format!("the agent in the manifests has no {FLAG}"))?;
    *flag = json!(format!("{FLAG}{transport}"));
    Ok(())
}

/// What `cni.chainPortmap=true` adds: hostPort by the reference plugin, which nodes of these clusters have.
fn chain_portmap(container: &mut Value) {
    append(
        &mut container["args"],
        [json!("--cni-chain=portmap"), json!("--cni-bin-dir=/host/cni/bin")],
    );
    append(
        &mut container["volumeMounts"],
        [json!({"name": "cni-bin", "mountPath": "/host/cni/bin", "readOnly": true})],
    );
}

fn append<const N: usize>(list: &mut Value, items: [Value; N]) {
    if let Some(list) = list.as_array_mut() {
        list.extend(items);
    }
}

/// A network of the reference plugins: a bridge on every node, and on every machine of the cluster a route to every
/// node's pods.
///
/// # Errors
/// The kernel's or the file system's refusal.
pub fn install_bridge(cluster: &Cluster, blocks: &[(String, Ipv4Net)]) -> Result<()> {
    for (name, block) in blocks {
        let node = cluster.node(name)?;
        let others = cluster.nodes.iter().filter(|other| other.name != node.name);
        let machines = others.map(|other| cluster.node_netns(&other.name));
        for netns in machines.chain([cluster.control_plane_netns()]) {
            let netns = NetNs::named(&netns)?;
            let mut rtnl = Rtnl::open_in(&netns)?;
            let eth0 = rtnl.link_index("eth0")?;
            rtnl.replace_route(&vnet::configured(Route::via(*block, node.address, eth0)))?;
        }
        masquerade(cluster, &NetNs::named(&cluster.node_netns(name))?, *block)?;
        let dir = cluster.node_data(name).join("etc-cni/net.d");
        // Runtimes don't notice a file that is renamed in from elsewhere.
        let draft = dir.join("bridge.draft");
        let list = dir.join("20-bridge.conflist");
        fs::write(&draft, format!("{:#}\n", conflist(*block)))
            .and_then(|()| fs::rename(&draft, &list))
            .with_context(|| format!("write {}", list.display()))?;
    }
    Ok(())
}

/// Pods leave for other networks than pods' and nodes' under their node's address.
fn masquerade(cluster: &Cluster, netns: &NetNs, block: Ipv4Net) -> Result<()> {
    let to = |net: Ipv4Net| Rule {
        comment: "",
        when: vec![Match::Destination(net)],
        counted: false,
        then: Action::Return,
    };
    let table = Table {
        name: "weft-kube-bridge".to_owned(),
        comment: String::new(),
        chains: vec![Chain {
            name: "postrouting",
            base: Some(Base {
                kind: ChainKind::Nat,
                hook: Hook::Postrouting,
                priority: NAT_SOURCE,
            }),
            rules: vec![
                to(cluster.config.pod_cidr),
                to(cluster.subnet),
                Rule {
                    comment: "",
                    when: vec![Match::Source(block)],
                    counted: true,
                    then: Action::Masquerade(None),
                },
            ],
        }],
    };
    Nft::open_in(netns)?.apply(&table.compile()?)?;
    Ok(())
}

fn conflist(block: Ipv4Net) -> Value {
    json!({
        "cniVersion": "0.4.0",
        "name": "bridge",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": block}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Cni;

    fn config(proxy: Proxy) -> Config {
        Config {
            vnet: "v".to_owned(),
            proxy,
            cni: Cni::Weft,
            ipam: Ipam::Node,
            transport: TransportChoice::Device,
            pod_cidr: "10.9.0.0/16".parse().unwrap(),
            service_cidr: "10.96.0.0/16".parse().unwrap(),
            dns: true,
            cache: "/cache".into(),
            weft_image: None,
            weft_manifests: None,
        }
    }

    #[test]
    fn manifests_get_the_cluster_s_addresses() {
        let text = "kind: PodPool\nspec: {cidrs: [10.244.0.0/16]}\n---\nkind: DaemonSet\nspec: {template: {spec: {containers: [{name: a, args: [agent, --transport=auto], env: []}]}}}\n";
        let api = Ipv4Addr::new(172, 31, 0, 240);
        let read = |proxy| -> Value {
            serde_json::from_str(&adapt(text, &config(proxy), api, None).unwrap()).unwrap()
        };
        let with = read(Proxy::Nftables);
        assert_eq!(
            with["items"][0]["spec"],
            json!({"cidrs": ["10.9.0.0/16"], "ipam": "node"})
        );
        let env = |list: &Value| list["items"][1]["spec"]["template"]["spec"]["containers"][0]["env"].clone();
        assert_eq!(env(&with), json!([]));
        let args = &with["items"][1]["spec"]["template"]["spec"]["containers"][0]["args"];
        assert_eq!(
            args,
            &json!([
                "agent",
                "--transport=device",
                "--cni-chain=portmap",
                "--cni-bin-dir=/host/cni/bin"
            ])
        );
        assert_eq!(env(&read(Proxy::None))[0]["value"], "172.31.0.240");
    }
}
