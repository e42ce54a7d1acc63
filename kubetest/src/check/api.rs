//! What the API server reaches.

use anyhow::bail;
use serde_json::json;

use super::scene::{NAMESPACE, PORT, Scene};
use super::{Check, Outcome, yes};

pub(super) const ALL: &[Check] = &[
    Check {
        name: "api-to-pod",
        description: "The API server reaches pods of every node, by the subresource proxy",
        run: |scene| {
            for pod in [&scene.a, &scene.a2, &scene.b] {
                let path = format!(
                    "/api/v1/namespaces/{NAMESPACE}/pods/{}:{PORT}/proxy/hostname",
                    pod.name
                );
                let name = scene.read(&["get", "--request-timeout=10s", "--raw", &path])?;
                if name != pod.name {
                    bail!("{name} answered instead of {}", pod.name);
                }
            }
            yes("pods a, a2 and b")
        },
    },
    Check {
        name: "api-to-service",
        description: "The API server reaches a Service, as it does an admission webhook's or an aggregated API's",
        run: |scene: &Scene| {
            let path = format!("/api/v1/namespaces/{NAMESPACE}/services/only-b:http/proxy/hostname");
            let name = scene.read(&["get", "--request-timeout=10s", "--raw", &path])?;
            if name != "b" {
                bail!("{name} answered instead of b");
            }
            yes("Service only-b")
        },
    },
    Check {
        name: "bad-pools",
        description: "kubectl apply of a pool that can never work is refused with the field, the value and the reason",
        run: bad_pools,
    },
];

fn bad_pools(scene: &Scene) -> Outcome {
    let services = scene.cluster.config.service_cidr.to_string();
    let mut cases = vec![
        (json!({"cidrs": ["10.300.0.0/16"]}), "spec.cidrs".to_owned()),
        (json!({"cidrs": ["010.244.0.0/16"]}), "spec.cidrs".to_owned()),
        (json!({"cidrs": ["10.9.0.1/16"]}), "spec.cidrs".to_owned()),
        (
            json!({"cidrs": ["10.9.0.0/16", "10.9.128.0/17"]}),
            "overlap".to_owned(),
        ),
        (
            json!({"cidrs": ["10.9.0.0/24"], "blockSize": 22}),
            "spec.".to_owned(),
        ),
        (
            json!({"cidrs": ["10.9.0.0/16"], "blocksize": 24}),
            "blocksize".to_owned(),
        ),
        (
            json!({"cidrs": [services]}),
            "of ServiceCIDR kubernetes".to_owned(),
        ),
        (
            json!({"cidrs": [scene.cluster.config.pod_cidr]}),
            "of PodPool default".to_owned(),
        ),
    ];
    // Its slices tell the policy of the nodes' addresses.
    cases.push((
        json!({"cidrs": [scene.cluster.subnet]}),
        "the address of node".to_owned(),
    ));
    let count = cases.len();
    for (spec, said) in cases {
        let pool = json!({
            "apiVersion": "weft.dev/v1alpha1",
            "kind": "PodPool",
            "metadata": {"name": "bad"},
            "spec": spec,
        });
        match scene.kubectl.apply(&pool.to_string()) {
            Ok(()) => {
                scene.kubectl.read(&["delete", "podpool", "bad"])?;
                bail!("the API server accepts {spec}");
            }
            Err(error) if !format!("{error:#}").contains(&said) => {
                bail!("of {spec} the API server does not say {said:?} but {error:#}");
            }
            Err(_) => {}
        }
    }
    yes(format!("{count} pools"))
}
