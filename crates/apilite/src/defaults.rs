//! Defaults of built-in types, as `pkg/apis/*/v1/defaults.go` of Kubernetes sets them.

use serde_json::{Value, json};

use crate::registry::Resource;

/// Fills in what the type leaves open.
pub(crate) fn apply(resource: &Resource, object: &mut Value) {
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("", "pods") => pod(object),
        ("", "podtemplates") => template(&mut object["template"]),
        ("", "services") => service(&mut object["spec"]),
        ("", "endpoints") => {
            for subset in items(object, "subsets") {
                for port in items(subset, "ports") {
                    set(port, "protocol", "TCP");
                }
            }
        }
        ("", "secrets") => secret(object),
        ("", "nodes") => {
            if let Some(capacity) = object["status"].get("capacity").cloned() {
                set(&mut object["status"], "allocatable", capacity);
            }
        }
        ("", "persistentvolumes") => {
            set(&mut object["spec"], "persistentVolumeReclaimPolicy", "Retain");
            set(&mut object["spec"], "volumeMode", "Filesystem");
        }
        ("", "persistentvolumeclaims") => set(&mut object["spec"], "volumeMode", "Filesystem"),
        ("", "replicationcontrollers") => {
            let spec = &mut object["spec"];
            set(spec, "replicas", 1);
            if let Some(labels) = spec.pointer("/template/metadata/labels").cloned() {
                set(spec, "selector", labels);
            }
            template(&mut spec["template"]);
        }
        ("apps", _) => workload(&resource.plural, object),
        ("batch", "jobs") => job(&mut object["spec"]),
        ("batch", "cronjobs") => {
            let spec = &mut object["spec"];
            set(spec, "concurrencyPolicy", "Allow");
            set(spec, "suspend", false);
            set(spec, "successfulJobsHistoryLimit", 3);
            set(spec, "failedJobsHistoryLimit", 1);
            template(&mut spec["jobTemplate"]["spec"]["template"]);
        }
        ("autoscaling", _) => set(&mut object["spec"], "minReplicas", 1),
        ("networking.k8s.io", "networkpolicies") => network_policy(&mut object["spec"]),
        ("discovery.k8s.io", "endpointslices") => {
            for port in items(object, "ports") {
                set(port, "name", "");
                set(port, "protocol", "TCP");
            }
        }
        ("storage.k8s.io", "storageclasses") => {
            set(object, "reclaimPolicy", "Delete");
            set(object, "volumeBindingMode", "Immediate");
        }
        ("scheduling.k8s.io", _) => set(object, "preemptionPolicy", "PreemptLowerPriority"),
        ("rbac.authorization.k8s.io", "rolebindings" | "clusterrolebindings") => {
            set(&mut object["roleRef"], "apiGroup", "rbac.authorization.k8s.io");
            for subject in items(object, "subjects") {
                let is_account = subject["kind"] == "ServiceAccount";
                set(
                    subject,
                    "apiGroup",
                    if is_account {
                        ""
                    } else {
                        "rbac.authorization.k8s.io"
                    },
                );
            }
        }
        (
            "admissionregistration.k8s.io",
            "mutatingwebhookconfigurations" | "validatingwebhookconfigurations",
        ) => {
            for webhook in items(object, "webhooks") {
                set(webhook, "failurePolicy", "Fail");
                set(webhook, "matchPolicy", "Equivalent");
                set(webhook, "timeoutSeconds", 10);
                set(webhook, "namespaceSelector", json!({}));
                set(webhook, "objectSelector", json!({}));
            }
        }
        _ => {}
    }
}

/// Sets a field that is absent.
pub(crate) fn set(object: &mut Value, field: &str, value: impl Into<Value>) {
    if let Some(fields) = object.as_object_mut() {
        fields.entry(field).or_insert_with(|| value.into());
    }
}

/// The items of a list, none if it isn't there.
pub(crate) fn items<'a>(object: &'a mut Value, field: &str) -> impl Iterator<Item = &'a mut Value> {
    object
        .get_mut(field)
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
}

fn pod(pod: &mut Value) {
    let spec = &mut pod["spec"];
    set(spec, "enableServiceLinks", true);
    pod_spec(spec);
    // What the admission plugins Priority and DefaultTolerationSeconds add.
    set(spec, "priority", 0);
    set(spec, "preemptionPolicy", "PreemptLowerPriority");
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let known = items(spec, "tolerations").any(|toleration| {
            let covers_key = toleration["key"] == key || toleration["key"].as_str().is_none_or(str::is_empty);
            let covers_effect = toleration["effect"] == "NoExecute"
                || toleration["effect"].as_str().is_none_or(str::is_empty);
            covers_key && covers_effect
        });
        if !known && spec.is_object() {
            set(spec, "tolerations", json!([]));
            let added =
                json!({ "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300 });
            if let Some(tolerations) = spec["tolerations"].as_array_mut() {
                tolerations.push(added);
            }
        }
    }
}

fn template(template: &mut Value) {
    if let Some(spec) = template.get_mut("spec") {
        pod_spec(spec);
    }
    // As the real server prints templates.
    set(template, "metadata", json!({}));
}

fn pod_spec(spec: &mut Value) {
    set(spec, "restartPolicy", "Always");
    set(spec, "dnsPolicy", "ClusterFirst");
    set(spec, "terminationGracePeriodSeconds", 30);
    set(spec, "securityContext", json!({}));
    set(spec, "schedulerName", "default-scheduler");
    // The deprecated alias is kept in step.
    match (
        spec["serviceAccountName"].as_str(),
        spec["serviceAccount"].as_str(),
    ) {
        (Some(name), _) => {
            let name = Value::from(name);
            spec["serviceAccount"] = name;
        }
        (None, Some(name)) => {
            let name = Value::from(name);
            spec["serviceAccountName"] = name;
        }
        (None, None) => {}
    }
    remove_null(spec, &["serviceAccountName", "serviceAccount"]);
    let host_network = spec["hostNetwork"] == true;
    remove_null(spec, &["hostNetwork"]);
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for one in items(spec, list) {
            container(one, host_network);
        }
    }
    for one in items(spec, "volumes") {
        volume(one);
    }
}

/// Indexing for reading through a mutable place leaves nulls behind.
fn remove_null(object: &mut Value, names: &[&str]) {
    if let Some(fields) = object.as_object_mut() {
        for name in names {
            if fields.get(*name).is_some_and(Value::is_null) {
                fields.remove(*name);
            }
        }
    }
}

fn container(container: &mut Value, host_network: bool) {
    let image = container.get("image").and_then(Value::as_str).unwrap_or_default();
    let policy = if floating_tag(image) {
        "Always"
    } else {
        "IfNotPresent"
    };
    set(container, "imagePullPolicy", policy);
    set(container, "terminationMessagePath", "/dev/termination-log");
    set(container, "terminationMessagePolicy", "File");
    set(container, "resources", json!({}));
    for port in items(container, "ports") {
        set(port, "protocol", "TCP");
        if host_network && let Some(number) = port.get("containerPort").cloned() {
            set(port, "hostPort", number);
        }
    }
    // A limit without a request is also the request.
    if let Some(limits) = container["resources"]
        .get("limits")
        .and_then(Value::as_object)
        .cloned()
    {
        set(&mut container["resources"], "requests", json!({}));
        for (name, limit) in limits {
            set(&mut container["resources"]["requests"], &name, limit);
        }
    }
    for field in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.get_mut(field) {
            set(probe, "timeoutSeconds", 1);
            set(probe, "periodSeconds", 10);
            set(probe, "successThreshold", 1);
            set(probe, "failureThreshold", 3);
            handler(probe);
        }
    }
    if let Some(lifecycle) = container.get_mut("lifecycle") {
        for field in ["postStart", "preStop"] {
            if let Some(hook) = lifecycle.get_mut(field) {
                handler(hook);
            }
        }
    }
    for variable in items(container, "env") {
        if let Some(field) = variable.pointer_mut("/valueFrom/fieldRef") {
            set(field, "apiVersion", "v1");
        }
    }
}

fn handler(handler: &mut Value) {
    if let Some(get) = handler.get_mut("httpGet") {
        set(get, "path", "/");
        set(get, "scheme", "HTTP");
    }
    if let Some(grpc) = handler.get_mut("grpc") {
        set(grpc, "service", "");
    }
}

/// No tag, or `latest`: the image may change under its name.
fn floating_tag(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    let name = image.rsplit('/').next().unwrap_or(image);
    name.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

fn volume(volume: &mut Value) {
    if volume
        .as_object()
        .is_some_and(|fields| fields.len() == 1 && fields.contains_key("name"))
    {
        set(volume, "emptyDir", json!({}));
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = volume.get_mut(source) {
            set(source, "defaultMode", 0o644);
        }
    }
    if let Some(path) = volume.get_mut("hostPath") {
        set(path, "type", "");
    }
    if let Some(projected) = volume.get_mut("projected") {
        for source in items(projected, "sources") {
            if let Some(token) = source.get_mut("serviceAccountToken") {
                set(token, "expirationSeconds", 3600);
            }
        }
    }
}

fn workload(plural: &str, object: &mut Value) {
    let Some(spec) = object.get_mut("spec") else {
        return;
    };
    if plural == "controllerrevisions" {
        return;
    }
    if let Some(one) = spec.get_mut("template") {
        template(one);
    }
    match plural {
        "deployments" => {
            set(spec, "replicas", 1);
            set(spec, "revisionHistoryLimit", 10);
            set(spec, "progressDeadlineSeconds", 600);
            set(spec, "strategy", json!({}));
            let strategy = &mut spec["strategy"];
            set(strategy, "type", "RollingUpdate");
            if strategy["type"] == "RollingUpdate" {
                set(strategy, "rollingUpdate", json!({}));
                set(&mut strategy["rollingUpdate"], "maxUnavailable", "25%");
                set(&mut strategy["rollingUpdate"], "maxSurge", "25%");
            }
        }
        "replicasets" => set(spec, "replicas", 1),
        "statefulsets" => {
            set(spec, "replicas", 1);
            set(spec, "revisionHistoryLimit", 10);
            set(spec, "podManagementPolicy", "OrderedReady");
            set(spec, "updateStrategy", json!({}));
            let strategy = &mut spec["updateStrategy"];
            set(strategy, "type", "RollingUpdate");
            if strategy["type"] == "RollingUpdate" {
                set(strategy, "rollingUpdate", json!({}));
                set(&mut strategy["rollingUpdate"], "partition", 0);
            }
            set(
                spec,
                "persistentVolumeClaimRetentionPolicy",
                json!({ "whenDeleted": "Retain", "whenScaled": "Retain" }),
            );
            for claim in items(spec, "volumeClaimTemplates") {
                set(claim, "apiVersion", "v1");
                set(claim, "kind", "PersistentVolumeClaim");
                set(claim, "status", json!({ "phase": "Pending" }));
                if let Some(spec) = claim.get_mut("spec") {
                    set(spec, "volumeMode", "Filesystem");
                }
            }
        }
        "daemonsets" => {
            set(spec, "revisionHistoryLimit", 10);
            set(spec, "updateStrategy", json!({}));
            let strategy = &mut spec["updateStrategy"];
            set(strategy, "type", "RollingUpdate");
            if strategy["type"] == "RollingUpdate" {
                set(strategy, "rollingUpdate", json!({}));
                set(&mut strategy["rollingUpdate"], "maxUnavailable", 1);
                set(&mut strategy["rollingUpdate"], "maxSurge", 0);
            }
        }
        _ => {}
    }
}

fn job(spec: &mut Value) {
    let open = |spec: &Value, field: &str| spec.get(field).is_none();
    if open(spec, "completions") && open(spec, "parallelism") {
        set(spec, "completions", 1);
    }
    set(spec, "parallelism", 1);
    set(spec, "backoffLimit", 6);
    set(spec, "completionMode", "NonIndexed");
    set(spec, "suspend", false);
    set(spec, "manualSelector", false);
    set(spec, "podReplacementPolicy", "TerminatingOrFailed");
    if let Some(one) = spec.get_mut("template") {
        template(one);
    }
}

fn service(spec: &mut Value) {
    set(spec, "sessionAffinity", "None");
    set(spec, "type", "ClusterIP");
    if spec["sessionAffinity"] == "ClientIP" {
        set(
            spec,
            "sessionAffinityConfig",
            json!({ "clientIP": { "timeoutSeconds": 10_800 } }),
        );
    }
    for port in items(spec, "ports") {
        set(port, "protocol", "TCP");
        if let Some(number) = port.get("port").cloned() {
            set(port, "targetPort", number);
        }
    }
    let kind = spec
        .get("type")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    if matches!(kind.as_str(), "ClusterIP" | "NodePort" | "LoadBalancer") {
        set(spec, "internalTrafficPolicy", "Cluster");
        set(spec, "ipFamilies", json!(["IPv4"]));
        set(spec, "ipFamilyPolicy", "SingleStack");
    }
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer") {
        set(spec, "externalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        set(spec, "allocateLoadBalancerNodePorts", true);
    }
}

fn secret(secret: &mut Value) {
    set(secret, "type", "Opaque");
    let Some(fields) = secret.as_object_mut() else {
        return;
    };
    if let Some(Value::Object(texts)) = fields.remove("stringData") {
        let data = fields.entry("data").or_insert_with(|| json!({}));
        for (key, text) in texts {
            let text = text.as_str().unwrap_or_default();
            data[key] = Value::from(base64(text.as_bytes()));
        }
    }
}

fn network_policy(spec: &mut Value) {
    for (rules, _) in [("ingress", "from"), ("egress", "to")] {
        for rule in items(spec, rules) {
            for port in items(rule, "ports") {
                set(port, "protocol", "TCP");
            }
        }
    }
    let has_egress = spec
        .get("egress")
        .and_then(Value::as_array)
        .is_some_and(|rules| !rules.is_empty());
    let types = if has_egress {
        json!(["Ingress", "Egress"])
    } else {
        json!(["Ingress"])
    };
    set(spec, "policyTypes", types);
}

/// Standard base64 with padding.
pub(crate) fn base64(data: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(data.len().div_ceil(3) * 4);
    for chunk in data.chunks(3) {
        let bits = chunk
            .iter()
            .fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte))
            << (8 * (3 - chunk.len()));
        for i in 0..4 {
            let symbol = ALPHABET[(bits >> (18 - 6 * i) & 0x3f) as usize];
            out.push(if i <= chunk.len() { char::from(symbol) } else { '=' });
        }
    }
    out
}

/// `status.qosClass` of a pod.
pub(crate) fn qos_class(spec: &Value) -> &'static str {
    let containers = ["initContainers", "containers"]
        .into_iter()
        .flat_map(|list| spec[list].as_array().into_iter().flatten());
    let (mut any, mut all_limited) = (false, true);
    for container in containers {
        let quantity = |kind: &str, name: &str| {
            let text = container["resources"][kind][name].as_str()?;
            crate::quantity::parse(text).filter(|value| *value > 0)
        };
        for name in ["cpu", "memory"] {
            let (request, limit) = (quantity("requests", name), quantity("limits", name));
            any |= request.is_some() || limit.is_some();
            all_limited &= limit.is_some() && request.is_none_or(|request| Some(request) == limit);
        }
    }
    match (any, all_limited) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}
