//! What the API server reaches.

use anyhow::bail;

use super::scene::{NAMESPACE, PORT, Scene};
use super::{Check, yes};

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
];
