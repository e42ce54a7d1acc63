//! Clusters that share a virtual network.

use serde_json::Value;

use crate::support::{Name, is_root, text, weft, weft_json, weft_ok};

const POD: &str =
    "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: c, image: i}]}\n";

#[test]
fn two_clusters_with_the_same_pod_cidr_share_a_vnet_and_do_not_meet() {
    if !is_root("two_clusters_with_the_same_pod_cidr_share_a_vnet_and_do_not_meet") {
        return;
    }
    let (blue, green) = (Name::new("blue"), Name::new("green"));
    let before = (blue.traces(), green.traces());
    weft_ok(&["lab", "create", blue.as_str(), "--vnet", blue.as_str()]);
    weft_ok(&["lab", "create", green.as_str(), "--vnet", blue.as_str()]);

    let status = [&blue, &green].map(|name| weft_json(&["lab", "status", name.as_str()]));
    let addresses = |status: &Value| -> Vec<String> {
        let nodes = status["nodes"].as_array().unwrap();
        nodes
            .iter()
            .map(|node| node["address"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(addresses(&status[0]), ["10.224.0.4", "10.224.0.5"]);
    assert_eq!(addresses(&status[1]), ["10.224.0.6", "10.224.0.7"]);
    assert_eq!(status[0]["config"]["podCidr"], status[1]["config"]["podCidr"]);

    let other = weft(&[
        "lab",
        "create",
        "other",
        "--vnet",
        blue.as_str(),
        "--vnet-subnet-prefix",
        "10.225.0.0/16",
    ]);
    assert!(text(&other).starts_with("error[WEFT-1105]: "), "{}", text(&other));

    let file = std::env::temp_dir().join(format!("{}.yaml", green.as_str()));
    std::fs::write(&file, POD).unwrap();
    weft_ok(&["lab", "apply", green.as_str(), "-f", file.to_str().unwrap()]);
    std::fs::remove_file(&file).unwrap();
    let report = weft_json(&["lab", "check", blue.as_str(), "--test", "isolation"]);
    assert_eq!(report["checks"][0]["verdict"], "passed", "{report:#}");

    weft_ok(&["lab", "delete", blue.as_str()]);
    let left = weft_json(&["lab", "status", green.as_str()]);
    assert_eq!(left["phase"], "Ready", "the VNet stays while a cluster uses it");
    weft_ok(&["lab", "delete", green.as_str()]);
    assert_eq!((blue.traces(), green.traces()), before);
}
