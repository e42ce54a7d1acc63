//! Running Helm and kubectl from the root of the repository.

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

/// A rendering: its values as `--set` takes them.
pub(crate) const INSTALL: [&str; 5] = [
    "template",
    "weft",
    "deploy/helm/weft",
    "--namespace",
    "weft-system",
];

pub(crate) fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// Runs a program, or says why the test can't and returns `None`.
pub(crate) fn run(program: &str, args: &[&str]) -> Option<Output> {
    match Command::new(program).args(args).current_dir(root()).output() {
        Ok(output) => Some(output),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!(
                "skipped: {program} is not there; cargo xtask test chart builds Helm where there is Go"
            );
            None
        }
        Err(error) => panic!("{program}: {error}"),
    }
}

/// What a program that must succeed wrote to standard output.
pub(crate) fn text(program: &str, args: &[&str]) -> Option<String> {
    let output = run(program, args)?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {}: {stderr}", args.join(" "));
    Some(String::from_utf8(output.stdout).expect("UTF-8"))
}

/// The objects of a rendering, sorted by kind and name.
pub(crate) fn objects(yaml: &str) -> Vec<Value> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(yaml).expect("YAML");
    let mut objects: Vec<Value> = documents
        .into_iter()
        .filter(|document| !document.is_null())
        .collect();
    objects.sort_by_key(|object| {
        let field = |pointer| {
            object
                .pointer(pointer)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        [
            field("/kind"),
            field("/metadata/namespace"),
            field("/metadata/name"),
        ]
    });
    objects
}

/// The only object of this kind and name.
pub(crate) fn object<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let mut found = objects
        .iter()
        .filter(|object| object["kind"] == kind && object["metadata"]["name"] == name);
    let first = found.next().unwrap_or_else(|| panic!("no {kind} {name}"));
    assert!(found.next().is_none(), "two {kind} {name}");
    first
}
