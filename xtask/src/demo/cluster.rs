//! A lab cluster, as `weft lab` shows it.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::exec;

/// A lab cluster by its name.
#[derive(Debug)]
pub(crate) struct Cluster {
    weft: PathBuf,
    pub(crate) name: &'static str,
}

/// A pod that runs.
#[derive(Debug, Clone)]
pub(crate) struct Pod {
    /// NAMESPACE/NAME
    pub(crate) name: String,
    pub(crate) node: String,
    pub(crate) address: Ipv4Addr,
    /// The first TCP port it declares.
    pub(crate) port: Option<u64>,
}

// === impl Cluster ===

impl Cluster {
    pub(crate) fn new(weft: &Path, name: &'static str) -> Self {
        Self {
            weft: weft.to_owned(),
            name,
        }
    }

    /// `weft lab <verb> <name>`
    pub(crate) fn lab(&self, verb: &str) -> Command {
        let mut command = exec::command(&self.weft.to_string_lossy());
        command.args(["lab", verb, self.name]);
        command
    }

    /// `weft lab exec <name> <pod> --`
    pub(crate) fn exec(&self, pod: &Pod) -> Command {
        let mut command = self.lab("exec");
        command.args([&pod.name, "--"]);
        command
    }

    /// `weft lab node-exec <name> <node> --`
    pub(crate) fn node_exec(&self, node: &str) -> Command {
        let mut command = self.lab("node-exec");
        command.args([node, "--"]);
        command
    }

    pub(crate) fn exists(&self) -> Result<bool> {
        let mut command = exec::command(&self.weft.to_string_lossy());
        let list = json(command.args(["lab", "list", "-o", "json"]))?;
        let items = list["items"]
            .as_array()
            .context("no `items` in the list of clusters")?;
        Ok(items.iter().any(|item| item["name"] == self.name))
    }

    pub(crate) fn status(&self) -> Result<Value> {
        // The exit code says how the cluster is, which the answer says too.
        let output = exec::output(self.lab("status").args(["-o", "json"]))?;
        serde_json::from_slice(&output.stdout).with_context(|| {
            format!(
                "read the status of {}: {}",
                self.name,
                String::from_utf8_lossy(&output.stderr).trim()
            )
        })
    }

    pub(crate) fn nodes(&self) -> Result<usize> {
        Ok(self.status()?["nodes"]
            .as_array()
            .context("a status without nodes")?
            .len())
    }

    /// The number of running pods once none waits.
    pub(crate) fn settled(&self) -> Result<Option<u64>> {
        let listed = self.list_pods()?;
        let phases = listed
            .iter()
            .map(|pod| pod["status"]["phase"].as_str().unwrap_or("Pending"));
        let running = phases.clone().filter(|phase| *phase == "Running").count() as u64;
        let waiting = phases.filter(|phase| *phase == "Pending").count();
        // What was just applied has no pods yet that could wait.
        let mut missing = false;
        for kind in ["deployments", "statefulsets"] {
            let list = self.get(&format!("/apis/apps/v1/{kind}"))?;
            let number = |value: &Value, absent| value.as_u64().unwrap_or(absent);
            missing |= list["items"].as_array().into_iter().flatten().any(|object| {
                number(&object["status"]["readyReplicas"], 0) < number(&object["spec"]["replicas"], 1)
            });
        }
        Ok((waiting == 0 && !missing && running > 0).then_some(running))
    }

    /// The host of the virtual network that is no node.
    pub(crate) fn host(&self) -> Result<Ipv4Addr> {
        let status = self.status()?;
        let text = status["network"]["host"]
            .as_str()
            .context("a status without the VNet's host")?;
        text.parse().with_context(|| format!("parse address {text}"))
    }

    /// The pods that run and have an address of their own.
    pub(crate) fn pods(&self) -> Result<Vec<Pod>> {
        Ok(self.list_pods()?.iter().filter_map(Pod::read).collect())
    }

    fn list_pods(&self) -> Result<Vec<Value>> {
        let list = self.get("/api/v1/pods")?;
        Ok(list["items"].as_array().context("a list without items")?.clone())
    }

    /// Asks the cluster's API, by HTTP/1.0: the answer ends with the connection.
    fn get(&self, path: &str) -> Result<Value> {
        let status = self.status()?;
        let url = status["api"].as_str().context("a status without the API's URL")?;
        let authority = url
            .strip_prefix("http://")
            .with_context(|| format!("{url} is not plain HTTP"))?;
        let authority = authority.trim_end_matches('/');
        let mut stream = TcpStream::connect(authority).with_context(|| format!("connect to {url}"))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(
            stream,
            "GET {path} HTTP/1.0\r\nHost: {authority}\r\nAccept: application/json\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream
            .read_to_string(&mut answer)
            .with_context(|| format!("read {url}{path}"))?;
        let (head, body) = answer
            .split_once("\r\n\r\n")
            .context("an answer without end of headers")?;
        let first = head.lines().next().unwrap_or_default();
        if !first.contains(" 200 ") {
            bail!("{url}{path}: {first}");
        }
        serde_json::from_str(body).with_context(|| format!("parse {url}{path}"))
    }
}

// === impl Pod ===

impl Pod {
    fn read(object: &Value) -> Option<Self> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        if object["status"]["phase"] != "Running" || object["spec"]["hostNetwork"] == true {
            return None;
        }
        let metadata = &object["metadata"];
        let containers = object["spec"]["containers"].as_array()?;
        let ports = containers
            .iter()
            .filter_map(|container| container["ports"].as_array())
            .flatten();
        Some(Self {
            name: format!("{}/{}", text(&metadata["namespace"])?, text(&metadata["name"])?),
            node: text(&object["spec"]["nodeName"])?,
            address: object["status"]["podIP"].as_str()?.parse().ok()?,
            port: ports
                .filter(|port| port["protocol"].as_str().unwrap_or("TCP") == "TCP")
                .find_map(|port| port["containerPort"].as_u64()),
        })
    }
}

fn json(command: &mut Command) -> Result<Value> {
    let text = exec::read(command)?;
    serde_json::from_str(&text).with_context(|| format!("parse the output of `{}`", exec::line(command)))
}
