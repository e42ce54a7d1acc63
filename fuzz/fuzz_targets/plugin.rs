//! A whole call of the plugin, from environment and standard input to its answer, with no agent there: one valid JSON
//! object of CNI or none, and no file but the intent of a DEL.

#![no_main]

use std::cell::RefCell;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};
use weft_cni::plugin;

#[derive(Arbitrary, Debug)]
struct Call {
    command: Command,
    container_id: Option<Vec<u8>>,
    if_name: Option<Vec<u8>>,
    args: Option<Vec<u8>>,
    netns: Netns,
    netns_override: Option<Vec<u8>>,
    /// What the configuration is, where that is no object or has no name.
    stdin: Stdin,
}

#[derive(Arbitrary, Debug)]
enum Command {
    Add,
    Check,
    Del,
    Gc,
    Status,
    Version,
    Other(Vec<u8>),
}

/// Never a path of the fuzzer's own making: the plugin would open it, as root.
#[derive(Arbitrary, Debug)]
enum Netns {
    Absent,
    Empty,
    Missing,
    Directory,
    File,
    Own,
}

#[derive(Arbitrary, Debug)]
enum Stdin {
    Raw(Vec<u8>),
    /// With a name and paths that are the target's.
    Object(Vec<u8>),
}

thread_local! {
    static DIR: RefCell<tempfile::TempDir> = RefCell::new(tempfile::tempdir().expect("a directory"));
}

fuzz_target!(|call: Call| {
    DIR.with_borrow(|dir| call.make(dir.path().to_owned()));
});

impl Call {
    fn make(self, dir: PathBuf) {
        let stdin = match self.stdin {
            Stdin::Raw(bytes) => match serde_json::from_slice(&bytes) {
                // Its paths would be followed.
                Ok(Value::Object(_)) => return,
                _ => bytes,
            },
            Stdin::Object(bytes) => {
                let mut value: Value = serde_json::from_slice(&bytes).unwrap_or(json!({}));
                if !value.is_object() {
                    value = json!({});
                }
                value["name"] = json!("weft");
                value["socket"] = json!(dir.join("none.sock"));
                value["intentDir"] = json!(dir.join("intents"));
                value["logFile"] = Value::Null;
                value.to_string().into_bytes()
            }
        };
        let command = match self.command {
            Command::Add => b"ADD".to_vec(),
            Command::Check => b"CHECK".to_vec(),
            Command::Del => b"DEL".to_vec(),
            Command::Gc => b"GC".to_vec(),
            Command::Status => b"STATUS".to_vec(),
            Command::Version => b"VERSION".to_vec(),
            Command::Other(text) => text,
        };
        let file = dir.join("file");
        fs::write(&file, b"no namespace").expect("a file");
        let netns = match self.netns {
            Netns::Absent => None,
            Netns::Empty => Some(OsString::new()),
            Netns::Missing => Some(dir.join("missing").into()),
            Netns::Directory => Some(dir.clone().into()),
            Netns::File => Some(file.clone().into()),
            Netns::Own => Some("/proc/self/ns/net".into()),
        };
        let lookup = |name: &str| match name {
            "CNI_COMMAND" => Some(OsString::from_vec(command.clone())),
            "CNI_CONTAINERID" => self.container_id.clone().map(OsString::from_vec),
            "CNI_IFNAME" => self.if_name.clone().map(OsString::from_vec),
            "CNI_ARGS" => self.args.clone().map(OsString::from_vec),
            "CNI_NETNS" => netns.clone(),
            "CNI_NETNS_OVERRIDE" => self.netns_override.clone().map(OsString::from_vec),
            "CNI_PATH" => Some("/opt/cni/bin".into()),
            _ => None,
        };
        let outcome = plugin::run(lookup, stdin.as_slice());
        if outcome.success {
            assert!(
                matches!(command.as_slice(), b"DEL" | b"VERSION" | b""),
                "without an agent {} succeeded",
                String::from_utf8_lossy(&command)
            );
        } else {
            let answer = outcome.answer.expect("a failure has an answer");
            assert!(answer["code"].as_u64().is_some_and(|code| code > 0), "{answer}");
            assert!(
                answer["msg"]
                    .as_str()
                    .is_some_and(|text| text.starts_with("WEFT-")),
                "{answer}"
            );
            assert!(answer["cniVersion"].is_string(), "{answer}");
        }
        for entry in fs::read_dir(&dir).expect("the directory") {
            let entry = entry.expect("an entry");
            let name = entry.file_name();
            assert!(name == "file" || name == "intents", "{name:?} was made");
            if name == "intents" {
                assert!(
                    matches!(command.as_slice(), b"DEL" | b"ADD"),
                    "an intent of another command"
                );
                fs::remove_dir_all(entry.path()).expect("remove the intents");
            }
        }
    }
}
