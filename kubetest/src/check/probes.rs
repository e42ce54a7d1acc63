//! What the kubelet and kube-proxy do beyond plain connections: probes of all kinds, attach, UDP with affinity, and how
//! large a packet may be.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use weft_kernel::sockets::{self, Ipv4Socket, udp_packet};

use super::live::wait_for;
use super::scene::{NAMESPACE, Pod, Scene};
use super::{Check, Outcome, yes};

/// Port of the pods' UDP server.
const UDP_PORT: u16 = 8081;

/// IPv4 and UDP headers, in bytes.
const HEADERS: usize = 28;

/// How long one datagram's answer may take.
const ANSWER: Duration = Duration::from_secs(2);

/// Requests of one client that have to reach one pod.
const REQUESTS: usize = 20;

pub(super) const ALL: &[Check] = &[
    Check {
        name: "probes",
        description: "Pods with HTTP, TCP, exec and gRPC probes become and stay Ready; one that fails is restarted",
        run: probes,
    },
    Check {
        name: "attach",
        description: "kubectl attach reaches a pod's standard input and output",
        run: attach,
    },
    Check {
        name: "udp-affinity",
        description: "A UDP Service with sessionAffinity ClientIP sends one client to one pod",
        run: udp_affinity,
    },
    Check {
        name: "mtu",
        description: "A datagram of exactly the pods' MTU crosses nodes in one piece; one byte more is refused",
        run: mtu,
    },
];

fn probes(scene: &Scene) -> Outcome {
    let probed = |name: &str, args: Value, probe: Value| {
        let mut probe = probe;
        probe["periodSeconds"] = json!(1);
        json!({
            "name": name,
            "image": scene.image,
            "args": args,
            "readinessProbe": probe.clone(),
            "livenessProbe": probe,
        })
    };
    let netexec = |port: u16| json!(["netexec", format!("--http-port={port}"), "--udp-port=-1"]);
    let containers = json!([
        probed(
            "http",
            netexec(8080),
            json!({"httpGet": {"path": "/healthz", "port": 8080}})
        ),
        probed("tcp", netexec(8090), json!({"tcpSocket": {"port": 8090}})),
        probed("exec", netexec(8100), json!({"exec": {"command": ["true"]}})),
        probed(
            "grpc",
            json!(["grpc-health-checking", "--port=5000", "--http-port=8110"]),
            json!({"grpc": {"port": 5000}})
        ),
    ]);
    let failing = json!([{
        "name": "failing",
        "image": scene.image,
        "args": netexec(8080),
        "livenessProbe": {"tcpSocket": {"port": 9}, "periodSeconds": 1, "failureThreshold": 1},
    }]);
    for (name, containers) in [("probed", containers), ("failing", failing)] {
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {
                "nodeName": scene.b.node.name,
                "terminationGracePeriodSeconds": 0,
                "containers": containers,
            },
        });
        scene.kubectl.apply(&pod.to_string())?;
    }
    scene.read(&["wait", "--for=condition=Ready", "--timeout=90s", "pod/probed"])?;
    let restarts = |pod| scene.field(pod, "{.status.containerStatuses[*].restartCount}");
    let failed = wait_for("the kubelet to restart the pod whose probe fails", || {
        Ok(Some(restarts("pod/failing")?).filter(|count| !count.is_empty() && count != "0"))
    })?;
    let count = restarts("pod/probed")?;
    let ready = scene.field("pod/probed", "{.status.conditions[?(@.type==\"Ready\")].status}")?;
    if ready != "True" || count != "0 0 0 0" {
        bail!("the pod whose probes succeed is Ready={ready}, its containers' restarts are {count}");
    }
    scene.read(&["delete", "pod", "probed", "failing", "--timeout=60s"])?;
    yes(format!(
        "4 kinds of probes, the failing pod was restarted {failed} times"
    ))
}

fn attach(scene: &Scene) -> Outcome {
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "attached", "namespace": NAMESPACE},
        "spec": {
            "nodeName": scene.b.node.name,
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "shell",
                "image": scene.image,
                "stdin": true,
                "command": ["sh", "-c", "while read line; do echo \"got $line\"; done"],
            }],
        },
    });
    scene.kubectl.apply(&pod.to_string())?;
    scene.read(&["wait", "--for=condition=Ready", "--timeout=60s", "pod/attached"])?;
    let mut child = scene
        .kubectl
        .command()
        .args([
            "--namespace",
            NAMESPACE,
            "attach",
            "--stdin",
            "--quiet",
            "attached",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("start kubectl")?;
    let mut talk = || -> Result<String> {
        child.stdin.as_mut().context("no input")?.write_all(b"warp\n")?;
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().context("no output")?).read_line(&mut line)?;
        Ok(line)
    };
    let line = talk();
    let _ = child.kill();
    let _ = child.wait();
    let line = line?;
    if line.trim() != "got warp" {
        bail!("the pod answered {line:?}");
    }
    scene.read(&["delete", "pod", "attached", "--timeout=60s"])?;
    yes(line.trim())
}

fn udp_affinity(scene: &Scene) -> Outcome {
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "sticky", "namespace": NAMESPACE},
        "spec": {
            "selector": {"app": "check"},
            "sessionAffinity": "ClientIP",
            "ports": [{"name": "udp", "protocol": "UDP", "port": 81, "targetPort": UDP_PORT}],
        },
    });
    scene.kubectl.apply(&service.to_string())?;
    let address: Ipv4Addr = scene.field("service/sticky", "{.spec.clusterIP}")?.parse()?;
    let to = SocketAddr::from((address, 81));
    let mut served = Vec::new();
    for client in [&scene.a, &scene.b] {
        wait_for("the Service to answer", || {
            Ok(answer(scene, client, to, b"hostname").ok())
        })?;
        let mut seen = BTreeSet::new();
        for _ in 0..REQUESTS {
            let name = answer(scene, client, to, b"hostname")?;
            seen.insert(String::from_utf8_lossy(&name).into_owned());
        }
        if seen.len() != 1 {
            bail!("{seen:?} answered pod {}", client.name);
        }
        served.extend(seen.into_iter().map(|name| format!("{} by {name}", client.name)));
    }
    yes(format!("{REQUESTS} requests each: {}", served.join(", ")))
}

fn mtu(scene: &Scene) -> Outcome {
    let mtu: usize = scene
        .shell(&scene.a, "cat /sys/class/net/eth0/mtu")?
        .trim()
        .parse()?;
    let before = fragments(scene)?;
    // The kernel sets "don't fragment" on a datagram that fits.
    let mut datagram = b"echo ".to_vec();
    datagram.resize(mtu - HEADERS, b'w');
    let to = SocketAddrV4::new(scene.b.address, UDP_PORT);
    let echoed = answer(scene, &scene.a, to.into(), &datagram).context("a datagram of the MTU")?;
    if echoed.len() != datagram.len() - b"echo ".len() {
        bail!("{} bytes came back of {}", echoed.len(), datagram.len());
    }
    let from = SocketAddrV4::new(scene.a.address, 40_000);
    datagram.push(b'w');
    let packet = udp_packet(from, to, &datagram)?;
    let raw = Ipv4Socket::open(&scene.pod(&scene.a)?)?;
    match raw.send(&packet, scene.b.address) {
        Ok(()) => bail!("a packet of {} bytes left a pod whose MTU is {mtu}", packet.len()),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::MSGSIZE.raw_os_error()) => {}
        Err(error) => return Err(error).context("a packet of one byte more"),
    }
    let after = fragments(scene)?;
    if after != before {
        bail!("the nodes counted fragments {before:?} before and {after:?} after");
    }
    yes(format!("{mtu} bytes, no fragment on either node"))
}

/// How many fragments each of the two nodes has made and been sent.
fn fragments(scene: &Scene) -> Result<Vec<(String, String)>> {
    let mut all = Vec::new();
    for node in [&scene.a.node, &scene.b.node] {
        let text = scene
            .node(node)?
            .run(|| std::fs::read_to_string("/proc/thread-self/net/snmp"))??;
        let mut lines = text.lines().filter(|line| line.starts_with("Ip:"));
        let (Some(names), Some(values)) = (lines.next(), lines.next()) else {
            bail!("no line Ip: in /proc/net/snmp of {}", node.name);
        };
        let columns = names
            .split_ascii_whitespace()
            .zip(values.split_ascii_whitespace());
        all.extend(
            columns
                .filter(|(name, _)| ["ReasmReqds", "FragCreates", "FragFails"].contains(name))
                .map(|(name, value)| (format!("{} {name}", node.name), value.to_owned())),
        );
    }
    Ok(all)
}

/// What a UDP server answers a pod, which asks from a new port.
fn answer(scene: &Scene, from: &Pod, to: SocketAddr, request: &[u8]) -> Result<Vec<u8>> {
    let socket = sockets::udp_socket(&scene.pod(from)?, (Ipv4Addr::UNSPECIFIED, 0).into())?;
    socket.set_read_timeout(Some(ANSWER))?;
    socket.connect(to)?;
    socket.send(request)?;
    let mut buffer = vec![0; 65_536];
    let count = socket
        .recv(&mut buffer)
        .with_context(|| format!("pod {} to {to} by UDP", from.name))?;
    buffer.truncate(count);
    Ok(buffer)
}
