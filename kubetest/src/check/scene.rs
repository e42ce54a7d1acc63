//! Where the checks take place: pods on two nodes, Services before them, and the machines around.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use weft_kernel::NetNs;
use weft_kernel::sockets;

use crate::cache::Cache;
use crate::kubectl::Kubectl;
use crate::state::{Cluster, Node};

/// Namespace of the checks' objects.
pub(super) const NAMESPACE: &str = "weft-check";

/// Port of the pods' HTTP server.
pub(crate) const PORT: u16 = 8080;

/// How long one request may take.
const REQUEST: Duration = Duration::from_secs(5);

/// Everything the checks need.
pub(super) struct Scene {
    pub(super) cluster: Cluster,
    pub(super) kubectl: Kubectl,
    pub(super) image: String,
    /// Two pods on the first node.
    pub(super) a: Pod,
    pub(super) a2: Pod,
    /// A pod on the second node.
    pub(super) b: Pod,
}

/// A pod and its node.
#[derive(Clone)]
pub(super) struct Pod {
    pub(super) name: &'static str,
    pub(super) address: Ipv4Addr,
    pub(super) node: Node,
}

// === impl Scene ===

impl Scene {
    pub(super) fn set(cluster: &Cluster, cache: &Cache) -> Result<Self> {
        let [first, second, ..] = cluster.nodes.as_slice() else {
            bail!(
                "the checks need two nodes, cluster {} has {}\n  next: cargo xtask kube node-add {0}",
                cluster.name,
                cluster.nodes.len()
            );
        };
        let kubectl = Kubectl::new(cache, cluster);
        let image = cache.image("AGNHOST")?.to_owned();
        let mut objects =
            vec![json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})];
        for (name, node) in [("a", first), ("a2", first), ("b", second)] {
            objects.push(pod(name, &node.name, &image));
        }
        objects.extend([
            service("all", &json!({"app": "check"}), &json!({})),
            service("none", &json!({"app": "check"}), &json!({"clusterIP": "None"})),
            service(
                "only-b",
                &json!({"pod": "b"}),
                &json!({"type": "NodePort", "externalTrafficPolicy": "Cluster"}),
            ),
            service(
                "local-b",
                &json!({"pod": "b"}),
                &json!({"type": "NodePort", "externalTrafficPolicy": "Local"}),
            ),
            service("only-a", &json!({"pod": "a"}), &json!({})),
        ]);
        kubectl.apply(&json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string())?;
        kubectl.read(&[
            "--namespace",
            NAMESPACE,
            "wait",
            "--for=condition=Ready",
            "--timeout=90s",
            "pod/a",
            "pod/a2",
            "pod/b",
        ])?;
        let find = |name, node: &Node| find(&kubectl, name, node);
        Ok(Self {
            cluster: cluster.clone(),
            image,
            a: find("a", first)?,
            a2: find("a2", first)?,
            b: find("b", second)?,
            kubectl,
        })
    }

    /// One more pod, ready.
    pub(super) fn new_pod(&self, name: &'static str, node: &Node) -> Result<Pod> {
        self.new_pod_with(name, node, &json!({}))
    }

    /// One more pod, ready, whose container has more than the others.
    pub(super) fn new_pod_with(&self, name: &'static str, node: &Node, more: &Value) -> Result<Pod> {
        let mut object = pod(name, &node.name, &self.image);
        extend(&mut object["spec"]["containers"][0], more);
        self.kubectl.apply(&object.to_string())?;
        self.read(&[
            "wait",
            "--for=condition=Ready",
            "--timeout=90s",
            &format!("pod/{name}"),
        ])?;
        find(&self.kubectl, name, node)
    }

    pub(super) fn clean_up(&self) -> Result<()> {
        self.kubectl.read(&[
            "delete",
            "namespace",
            NAMESPACE,
            "--ignore-not-found",
            "--timeout=90s",
        ])?;
        Ok(())
    }

    /// kubectl in the checks' namespace.
    pub(super) fn read(&self, args: &[&str]) -> Result<String> {
        let args: Vec<&str> = ["--namespace", NAMESPACE]
            .into_iter()
            .chain(args.iter().copied())
            .collect();
        self.kubectl.read(&args)
    }

    /// What a shell command in a pod prints.
    pub(super) fn shell(&self, pod: &Pod, script: &str) -> Result<String> {
        self.read(&["exec", pod.name, "--", "sh", "-c", script])
    }

    /// The body that a pod gets from a URL without `http://`.
    pub(super) fn fetch(&self, pod: &Pod, url: &str) -> Result<String> {
        self.shell(
            pod,
            &format!("curl --silent --show-error --fail --max-time 5 --retry 5 --retry-connrefused --retry-delay 1 http://{url}"),
        )
        .with_context(|| format!("pod {} to {url}", pod.name))
    }

    /// A field of an object.
    pub(super) fn field(&self, object: &str, path: &str) -> Result<String> {
        self.read(&["get", object, &format!("--output=jsonpath={path}")])
    }

    /// The network of a node.
    pub(super) fn node(&self, node: &Node) -> Result<NetNs> {
        Ok(NetNs::named(&self.cluster.node_netns(&node.name))?)
    }

    /// The network of a pod.
    pub(super) fn pod(&self, pod: &Pod) -> Result<NetNs> {
        netns_of(&self.kubectl, NAMESPACE, pod.name)
    }

    /// The network beyond the nodes.
    pub(super) fn outside(&self) -> Result<NetNs> {
        Ok(NetNs::named(&crate::vnet::netns_name(&self.cluster.config.vnet))?)
    }
}

/// The network of a pod.
pub(crate) fn netns_of(kubectl: &Kubectl, namespace: &str, pod: &str) -> Result<NetNs> {
    let uid = kubectl.read(&[
        "--namespace",
        namespace,
        "get",
        "pod",
        pod,
        "--output=jsonpath={.metadata.uid}",
    ])?;
    // The name of its control groups is all of a pod that is to be seen from outside its node.
    let group = format!("pod{uid}");
    for entry in fs::read_dir("/proc")?.flatten() {
        let of_pod = fs::read_to_string(entry.path().join("cgroup")).is_ok_and(|text| text.contains(&group));
        if of_pod {
            return Ok(NetNs::open(entry.path().join("ns/net"))?);
        }
    }
    bail!("pod {pod} has no process on this machine")
}

/// The body of an HTTP answer to somebody in a network namespace of this machine.
pub(crate) fn http_from(netns: &NetNs, address: Ipv4Addr, port: u16, path: &str) -> Result<String> {
    let to = SocketAddr::from((address, port));
    let mut stream = sockets::tcp_connect(netns, to, REQUEST).with_context(|| format!("connect to {to}"))?;
    stream.set_read_timeout(Some(REQUEST))?;
    ask(&mut stream, path).with_context(|| format!("ask {to}{path}"))
}

/// The body of an HTTP answer on a connection, which can be asked again afterwards.
pub(super) fn ask(stream: &mut TcpStream, path: &str) -> Result<String> {
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n",
        stream.peer_addr()?
    )?;
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    // The connection is left open by the server: kubectl resets a forwarded one that its server closes first, and what
    // was not read by then is lost.
    while !is_whole(&answer) {
        match stream.read(&mut chunk)? {
            0 => break,
            count => answer.extend_from_slice(&chunk[..count]),
        }
    }
    let answer = String::from_utf8(answer).context("an answer that is no text")?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("an answer without a body")?;
    if !head.lines().next().is_some_and(|line| line.contains(" 200 ")) {
        bail!("answered {head:?}");
    }
    Ok(body.trim().to_owned())
}

/// Whether an answer holds as much as its head promises.
fn is_whole(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer);
    text.split_once("\r\n\r\n").is_some_and(|(head, body)| {
        head.lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
            .and_then(|(_, length)| length.trim().parse().ok())
            .is_some_and(|length: usize| body.len() >= length)
    })
}

/// Whether an answer of `/clientip` names this address.
pub(crate) fn expect_client(answer: &str, wanted: Ipv4Addr) -> Result<()> {
    let seen = answer.rsplit_once(':').map_or(answer, |(address, _)| address);
    let seen: Ipv4Addr = seen
        .parse()
        .with_context(|| format!("an address in {answer:?}"))?;
    if seen != wanted {
        bail!("the server saw {seen} instead of {wanted}");
    }
    Ok(())
}

fn find(kubectl: &Kubectl, name: &'static str, node: &Node) -> Result<Pod> {
    let args = [
        "--namespace",
        NAMESPACE,
        "get",
        "pod",
        name,
        "--output=jsonpath={.status.podIP}",
    ];
    Ok(Pod {
        name,
        address: kubectl
            .read(&args)?
            .parse()
            .with_context(|| format!("address of pod {name}"))?,
        node: node.clone(),
    })
}

fn pod(name: &str, node: &str, image: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"app": "check", "pod": name}},
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "agnhost",
                "image": image,
                "args": ["netexec", format!("--http-port={PORT}"), "--udp-port=8081"],
                "readinessProbe": {"httpGet": {"path": "/healthz", "port": PORT}, "periodSeconds": 1},
            }],
        },
    })
}

fn service(name: &str, selector: &Value, more: &Value) -> Value {
    let mut spec = json!({
        "selector": selector,
        "ports": [{"name": "http", "port": 80, "targetPort": PORT}],
    });
    extend(&mut spec, more);
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec})
}

fn extend(object: &mut Value, more: &Value) {
    if let (Some(object), Some(more)) = (object.as_object_mut(), more.as_object()) {
        object.extend(more.clone());
    }
}
