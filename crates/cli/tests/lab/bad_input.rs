//! Input that can't be carried out: one clear error with its code, and nothing made.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::support::{Name, WEFT, is_root, text, weft, weft_ok};

/// Flags of `lab create`, and the code and words of the error they have to bring.
const CREATE: &[(&[&str], &str, &str)] = &[
    (
        &["--pod-cidr", "10.224.0.0/12"],
        "WEFT-1003",
        "--pod-cidr 10.224.0.0/12 overlaps --vnet-subnet-prefix 10.224.0.0/16",
    ),
    (
        &["--pod-cidr", "10.0.128.0/17"],
        "WEFT-1003",
        "--service-cidr 10.0.0.0/16 overlaps --pod-cidr 10.0.128.0/17",
    ),
    (
        &["--pod-cidr", "10.244.0.0"],
        "WEFT-1001",
        "\"10.244.0.0\" is not an IPv4 range",
    ),
    (&["--pod-cidr", "10.244.3.0/16"], "WEFT-1002", "10.244.0.0/16"),
    (&["--pod-cidr", "127.0.0.0/16"], "WEFT-1011", "loopback"),
    (
        &["--pod-cidr", "10.244.0.0/25"],
        "WEFT-1005",
        "/24 is larger than the whole of --pod-cidr 10.244.0.0/25",
    ),
    (&["--block-size", "19"], "WEFT-1004", "/20 to /30"),
    (
        &["--pod-cidr", "10.244.0.0/24", "--node-count", "2"],
        "WEFT-1017",
        "holds 1 of --block-size /24",
    ),
    (
        &[
            "--enable-cluster-autoscaler",
            "--min-count",
            "3",
            "--max-count",
            "2",
        ],
        "WEFT-1006",
        "--min-count 3 is greater than --max-count 2",
    ),
    (
        &[
            "--enable-cluster-autoscaler",
            "--min-count",
            "3",
            "--max-count",
            "5",
        ],
        "WEFT-1006",
        "--node-count 2 is outside",
    ),
    (&["--min-count", "2"], "WEFT-1015", "--enable-cluster-autoscaler"),
    (
        &["--scale-down-unneeded-time", "30s"],
        "WEFT-1015",
        "--enable-cluster-autoscaler",
    ),
    (
        &["--enable-cluster-autoscaler", "--scale-down-unneeded-time", "0s"],
        "WEFT-1014",
        "outside 1s to 3600s",
    ),
    (
        &["--scale-down-unneeded-time", "soon"],
        "WEFT-1014",
        "expected a time such as 10s",
    ),
    (&["--node-count", "0"], "WEFT-1006", "1 to 200"),
    (
        &["--node-count", "-1"],
        "WEFT-1014",
        "--node-count <N> can't be \"-1\"",
    ),
    (&["--pod-cidr", "10.244.0.0/33"], "WEFT-1001", "\"10.244.0.0/33\""),
    (
        &["--vnet-subnet-prefix", "10.0.0.0/16"],
        "WEFT-1003",
        "--vnet-subnet-prefix 10.0.0.0/16 overlaps --service-cidr 10.0.0.0/16",
    ),
    (&["--vnet", "Hub"], "WEFT-1007", "VNet name \"Hub\""),
    (
        &["--vnet-subnet-id", "/subscriptions/1"],
        "WEFT-1014",
        "has no /virtualNetworks/NAME/",
    ),
    (&["--max-pods", "251"], "WEFT-1014", "10 to 250"),
    (&["--max-pods", "9"], "WEFT-1014", "10 to 250"),
    (
        &["--vnet-subnet-prefix", "10.224.0.0/27"],
        "WEFT-1014",
        "/8 to /26",
    ),
    (&["--service-cidr", "10.0.0.0/12"], "WEFT-1014", "/13 to /28"),
    (
        &["--dns-service-ip", "10.1.0.10"],
        "WEFT-1016",
        "lies outside --service-cidr 10.0.0.0/16",
    ),
    (&["--dns-service-ip", "10.0.0.1"], "WEFT-1016", "the API server's"),
    (&["--nod-count", "3"], "WEFT-1008", "did you mean --node-count?"),
    (&["--node-count", "many"], "WEFT-1014", "\"many\""),
    (
        &["--network-plugin", "azure"],
        "WEFT-1015",
        "--network-plugin-mode overlay",
    ),
    (
        &["--network-plugin", "kubenet"],
        "WEFT-1014",
        "choose one of azure, none",
    ),
];

#[test]
fn a_plan_that_can_not_work_is_refused_before_anything_is_made() {
    for (flags, code, words) in CREATE {
        let name = Name::new("bad");
        let before = name.traces();
        let args: Vec<&str> = ["lab", "create", name.as_str()]
            .iter()
            .chain(*flags)
            .copied()
            .collect();
        let output = weft(&args);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(2), "{flags:?}: {said}");
        assert!(said.starts_with(&format!("error[{code}]: ")), "{flags:?}: {said}");
        assert!(said.contains(words), "{flags:?}: {said}");
        assert!(said.contains("\n  next: "), "{flags:?}: {said}");
        assert_eq!(said.lines().count(), 2, "{flags:?}: {said}");
        assert_eq!(name.traces(), before, "{flags:?}");
    }
}

#[test]
fn a_name_that_is_no_dns_label_is_refused() {
    let long = "a".repeat(64);
    for name in [
        "Blue",
        "blue_green",
        "-blue",
        "blue-",
        "blue.green",
        long.as_str(),
    ] {
        let output = weft(&["lab", "create", "--", name]);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.starts_with("error[WEFT-1007]: "), "{said}");
        assert!(!Path::new("/run/weft/lab").join(name).exists());
    }
}

#[test]
fn a_command_to_run_stands_behind_two_dashes() {
    let output = weft(&["lab", "exec", "blue", "web", "ls"]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.starts_with("error[WEFT-1008]: "), "{said}");
    assert!(
        said.contains("next: write -- before the command: -- ls"),
        "{said}"
    );
}

#[test]
fn without_root_the_command_says_so() {
    if !is_root("without_root_the_command_says_so") {
        return;
    }
    let name = Name::new("uid");
    let output = Command::new(WEFT)
        .args(["lab", "create", name.as_str()])
        .uid(65_534)
        .gid(65_534)
        .output();
    let output = match output {
        Ok(output) => output,
        Err(error) => {
            eprintln!("without_root_the_command_says_so: SKIPPED, nobody may not run {WEFT}: {error}");
            return;
        }
    };
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.starts_with("error[WEFT-1201]: running as uid 65534"),
        "{said}"
    );
    assert!(
        said.contains(&format!("next: sudo {WEFT} lab create {}", name.as_str())),
        "{said}"
    );
}

#[test]
fn commands_about_a_cluster_that_is_not_there_say_so() {
    let name = Name::new("none");
    for args in [
        &["lab", "status", name.as_str()][..],
        &["lab", "kubeconfig", name.as_str()],
        &["lab", "scale", name.as_str(), "--node-count", "3"],
        &["lab", "fault", name.as_str(), "kill-agent"],
    ] {
        let output = weft(args);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
        assert!(said.starts_with("error[WEFT-1101]: "), "{args:?}: {said}");
    }
}

#[test]
fn manifests_that_can_not_be_applied_name_file_line_and_reason_and_change_nothing() {
    if !is_root("manifests_that_can_not_be_applied_name_file_line_and_reason_and_change_nothing") {
        return;
    }
    let name = Name::new("apply");
    weft_ok(&["lab", "create", name.as_str(), "--node-count", "1"]);
    let pod =
        "apiVersion: v1\nkind: Pod\nmetadata: {name: fine}\nspec: {containers: [{name: c, image: i}]}\n---\n";
    let dir = std::env::temp_dir().join(name.as_str());
    fs::create_dir_all(&dir).unwrap();
    for (text_after, code, words) in [
        ("kind: Pod\n  metadata: wrong\n", "WEFT-1009", "bad.yaml:7:"),
        (
            "apiVersion: v1\nkind: Pod\nspec: {}\n",
            "WEFT-1010",
            "without metadata.name",
        ),
        (
            "apiVersion: shop/v1\nkind: Basket\nmetadata: {name: b}\n",
            "WEFT-1010",
            "no kind Basket in shop/v1",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {nodeSelector: {disk: gold}, containers: [{name: c, image: i}]}\n",
            "WEFT-1013",
            "asks for a node with label disk=gold",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, image: i, resources: {requests: {cpu: 2k}}}]}\n",
            "WEFT-1013",
            "requests 2000 of cpu",
        ),
    ] {
        let file = dir.join("bad.yaml");
        fs::write(&file, format!("{pod}{text_after}")).unwrap();
        let output = weft(&["lab", "apply", name.as_str(), "-f", file.to_str().unwrap()]);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.starts_with(&format!("error[{code}]: ")), "{said}");
        assert!(said.contains(words), "{words}: {said}");
        let exec = weft(&["lab", "exec", name.as_str(), "fine", "--", "true"]);
        assert!(
            text(&exec).starts_with("error[WEFT-1107]: there is no pod"),
            "{}",
            text(&exec)
        );
    }
    fs::remove_dir_all(&dir).unwrap();
}
