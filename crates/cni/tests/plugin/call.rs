//! One call of the plugin, as a runtime makes it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write;
use std::process::{Child, Command, Stdio};

use serde_json::{Map, Value, json};

use crate::agent::FakeAgent;

pub(crate) const ID: &str = "4f1c0000aaaabbbb";

/// The plugin's own namespace: with the override every machine has that one.
pub(crate) const NETNS: &str = "/proc/self/ns/net";

#[derive(Clone)]
pub(crate) struct Call {
    env: BTreeMap<String, OsString>,
    config: Value,
    through: Vec<String>,
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) success: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

// === impl Call ===

impl Call {
    /// `command` with everything that containerd gives, for network "weft" in CNI 1.1.0.
    pub(crate) fn new(command: &str, agent: &FakeAgent) -> Self {
        let env = [
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", ID),
            ("CNI_NETNS", NETNS),
            ("CNI_NETNS_OVERRIDE", "true"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/opt/cni/bin"),
            (
                "CNI_ARGS",
                "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=4f1c;\
                 K8S_POD_UID=4e7d",
            ),
        ];
        Self {
            env: env.map(|(name, value)| (name.to_owned(), value.into())).into(),
            config: json!({
                "cniVersion": "1.1.0",
                "name": "weft",
                "type": "weft-cni",
                "socket": agent.socket(),
                "intentDir": agent.intent_dir(),
            }),
            through: Vec::new(),
        }
    }

    pub(crate) fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.env.insert(name.to_owned(), value.into());
        self
    }

    pub(crate) fn without_env(mut self, name: &str) -> Self {
        self.env.remove(name);
        self
    }

    pub(crate) fn config(mut self, key: &str, value: Value) -> Self {
        self.config[key] = value;
        self
    }

    pub(crate) fn without_config(mut self, key: &str) -> Self {
        self.config.as_object_mut().unwrap().remove(key);
        self
    }

    /// Started by another program, which gets the plugin as its last argument.
    pub(crate) fn through(mut self, program: &[&str]) -> Self {
        self.through = program.iter().copied().map(str::to_owned).collect();
        self
    }

    pub(crate) fn run(&self) -> Answer {
        self.run_with(self.stdin().as_bytes())
    }

    pub(crate) fn stdin(&self) -> String {
        self.config.to_string()
    }

    pub(crate) fn run_with(&self, stdin: &[u8]) -> Answer {
        let mut child = self.spawn();
        // Too much of it is not read to its end.
        let _ = child.stdin.take().unwrap().write_all(stdin);
        Answer::of(child)
    }

    /// Standard input, output and error are pipes.
    pub(crate) fn spawn(&self) -> Child {
        let plugin = env!("CARGO_BIN_EXE_weft-cni").to_owned();
        let words: Vec<_> = self.through.iter().chain([&plugin]).collect();
        let mut command = Command::new(words[0]);
        command
            .args(&words[1..])
            .env_clear()
            .envs(&self.env)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if !self.through.is_empty() {
            command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        }
        command.spawn().unwrap()
    }
}

// === impl Answer ===

impl Answer {
    pub(crate) fn of(child: Child) -> Self {
        let output = child.wait_with_output().unwrap();
        Self {
            success: output.status.success(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// The one result.
    pub(crate) fn result(&self) -> Value {
        assert!(self.success, "{self:?}");
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Success without a result.
    pub(crate) fn done(&self) {
        assert_eq!((self.success, self.stdout.as_str()), (true, ""), "{self:?}");
    }

    /// The one error object and nothing else, as its code and message.
    pub(crate) fn error(&self) -> (u64, String) {
        assert!(!self.success, "{self:?}");
        let object: Map<String, Value> =
            serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"));
        let keys: Vec<_> = object.keys().map(String::as_str).collect();
        assert_eq!(keys, ["cniVersion", "code", "details", "msg"], "{self:?}");
        assert!(!object["details"].as_str().unwrap().is_empty(), "{self:?}");
        (
            object["code"].as_u64().unwrap(),
            object["msg"].as_str().unwrap().to_owned(),
        )
    }
}
