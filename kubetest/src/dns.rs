//! CoreDNS, as a cluster's DNS Service.

use serde_json::{Value, json};

use crate::state::Cluster;

/// Namespace of what belongs to the cluster itself.
const NAMESPACE: &str = "kube-system";

/// All objects of it. The image is agnhost, which carries the program.
pub fn manifests(cluster: &Cluster, image: &str) -> Vec<Value> {
    // Blocks of their own: within one, `template` comes before `kubernetes` whatever their order here.
    let corefile = "\
cluster.local:53 in-addr.arpa:53 ip6.arpa:53 {
    errors
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        pods insecure
        ttl 5
    }
    cache 5
}
.:53 {
    errors
    ready
    # There is no internet behind this machine's clusters, and nobody shall wait for it.
    template ANY ANY . {
        rcode NXDOMAIN
    }
}
";
    let named = json!({"name": "coredns", "namespace": NAMESPACE});
    let labels = json!({"k8s-app": "kube-dns"});
    let ports = json!([
        {"name": "dns", "port": 53, "protocol": "UDP"},
        {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
    ]);
    vec![
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": named}),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": "coredns"},
            "rules": [
                {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": ["list", "watch"]},
                {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
            ],
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "coredns"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "coredns"},
            "subjects": [{"kind": "ServiceAccount", "name": "coredns", "namespace": NAMESPACE}],
        }),
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": named, "data": {"Corefile": corefile}}),
        json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": named,
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {
                        "serviceAccountName": "coredns",
                        "dnsPolicy": "Default",
                        "containers": [{
                            "name": "coredns",
                            "image": image,
                            "command": ["/coredns", "-conf", "/etc/coredns/Corefile"],
                            "ports": [
                                {"containerPort": 53, "protocol": "UDP"},
                                {"containerPort": 53, "protocol": "TCP"},
                            ],
                            "readinessProbe": {"httpGet": {"path": "/ready", "port": 8181}, "periodSeconds": 1},
                            "volumeMounts": [{"name": "config", "mountPath": "/etc/coredns"}],
                        }],
                        "volumes": [{"name": "config", "configMap": {"name": "coredns"}}],
                    },
                },
            },
        }),
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "kube-dns", "namespace": NAMESPACE, "labels": labels},
            "spec": {"clusterIP": cluster.dns_address(), "selector": labels, "ports": ports},
        }),
    ]
}
