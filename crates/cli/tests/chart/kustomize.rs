//! The same objects by kustomize.

use serde_json::json;

use crate::support::{object, objects, root, text};

#[test]
fn the_base_is_the_rendered_chart() {
    let Some(built) = text("kubectl", &["kustomize", "deploy/manifests"]) else {
        return;
    };
    let manifest = std::fs::read_to_string(root().join("deploy/manifests/weft.yaml")).expect("weft.yaml");
    assert_eq!(objects(&built), objects(&manifest));
}

#[test]
fn the_example_overlay_changes_what_it_says_and_nothing_else() {
    let Some(built) = text("kubectl", &["kustomize", "deploy/kustomize/example"]) else {
        return;
    };
    let mut built = objects(&built);
    assert_eq!(
        object(&built, "PodPool", "default")["spec"],
        json!({"cidrs": ["10.100.0.0/16"], "ipam": "node"})
    );
    let manifest = std::fs::read_to_string(root().join("deploy/manifests/weft.yaml")).expect("weft.yaml");
    let base = objects(&manifest.replace("image: localhost/weft:", "image: registry.example.com/weft:"));
    for (built, base) in built.iter_mut().zip(&base) {
        if built["kind"] == "PodPool" {
            built["spec"] = base["spec"].clone();
        }
    }
    assert_eq!(built, base);
}
