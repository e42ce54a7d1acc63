//! Pods and pod templates.

use serde_json::Value;

use super::{Empty, PROTOCOLS, Problems, is_empty_text, list, port_name};
use crate::error::FieldError;
use crate::names;

const CHANGEABLE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

pub(super) fn pod(object: &Value, problems: &mut Problems) {
    spec(&object["spec"], "spec", problems);
}

/// The labels and the specification of a template.
pub(super) fn template(template: &Value, path: &str, problems: &mut Problems) {
    problems.labels(
        &format!("{path}.metadata.labels"),
        &template["metadata"]["labels"],
    );
    spec(&template["spec"], &format!("{path}.spec"), problems);
}

pub(super) fn update(object: &Value, old: &Value, problems: &mut Problems) {
    let mut expected = old["spec"].clone();
    let new = &object["spec"];
    for containers in ["containers", "initContainers"] {
        let count = |spec: &Value| list(&spec[containers]).count();
        if count(new) != count(&expected) {
            problems.forbidden(
                &format!("spec.{containers}"),
                format!(
                    "pod updates may not add or remove {}",
                    if containers == "containers" {
                        "containers"
                    } else {
                        "init containers"
                    }
                ),
            );
            return;
        }
        for (i, container) in list(&new[containers]).enumerate() {
            if is_empty_text(&container["image"]) {
                problems.required(&format!("spec.{containers}[{i}].image"), "");
            }
            expected[containers][i]["image"] = container["image"].clone();
        }
    }
    for field in ["activeDeadlineSeconds", "schedulingGates"] {
        copy(new, &mut expected, field);
    }
    let (tolerations, before) = (&new["tolerations"], &expected["tolerations"]);
    if list(before).all(|toleration| list(tolerations).any(|kept| kept["key"] == toleration["key"])) {
        copy(new, &mut expected, "tolerations");
    }
    if new["terminationGracePeriodSeconds"] == 1
        && expected["terminationGracePeriodSeconds"]
            .as_i64()
            .is_some_and(|seconds| seconds < 0)
    {
        copy(new, &mut expected, "terminationGracePeriodSeconds");
    }
    // Gated pods may still say where they want to run.
    if list(&old["spec"]["schedulingGates"]).next().is_some() {
        copy(new, &mut expected, "nodeSelector");
        copy(new, &mut expected, "affinity");
    }
    if without_nulls(new) != without_nulls(&expected) {
        problems.forbidden("spec", CHANGEABLE);
    }
}

fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| (name.clone(), without_nulls(value)))
            .collect(),
        Value::Array(items) => items.iter().map(without_nulls).collect(),
        other => other.clone(),
    }
}

fn copy(from: &Value, to: &mut Value, field: &str) {
    to[field] = from[field].clone();
}

fn spec(spec: &Value, path: &str, problems: &mut Problems) {
    volumes(spec, path, problems);
    if list(&spec["containers"]).next().is_none() {
        problems.required(&format!("{path}.containers"), "");
    }
    let mut seen: Vec<&Value> = Vec::new();
    for containers in ["containers", "initContainers"] {
        for (i, one) in list(&spec[containers]).enumerate() {
            let path = format!("{path}.{containers}[{i}]");
            container(one, spec, &path, problems);
            if !is_empty_text(&one["name"]) {
                if seen.contains(&&one["name"]) {
                    problems.duplicate(&format!("{path}.name"), &one["name"]);
                }
                seen.push(&one["name"]);
            }
        }
    }
    host_ports(spec, path, problems);
    problems.one_of(
        &format!("{path}.restartPolicy"),
        &spec["restartPolicy"],
        &["Always", "Never", "OnFailure"],
        Empty::Wrong,
    );
    problems.one_of(
        &format!("{path}.dnsPolicy"),
        &spec["dnsPolicy"],
        &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"],
        Empty::Wrong,
    );
    problems.labels(&format!("{path}.nodeSelector"), &spec["nodeSelector"]);
    problems.not_negative(
        &format!("{path}.terminationGracePeriodSeconds"),
        &spec["terminationGracePeriodSeconds"],
    );
    if let Some(seconds) = spec["activeDeadlineSeconds"].as_i64()
        && !(1..=i64::from(i32::MAX)).contains(&seconds)
    {
        problems.invalid(
            &format!("{path}.activeDeadlineSeconds"),
            &spec["activeDeadlineSeconds"],
            "must be between 1 and 2147483647, inclusive",
        );
    }
    for (field, rule) in [
        ("nodeName", names::dns1123_subdomain as fn(&str) -> Vec<String>),
        ("serviceAccountName", names::dns1123_subdomain),
        ("hostname", names::dns1123_label),
        ("subdomain", names::dns1123_label),
        ("priorityClassName", names::dns1123_subdomain),
    ] {
        if let Some(text) = spec[field].as_str().filter(|text| !text.is_empty()) {
            problems.text(&format!("{path}.{field}"), &spec[field], rule(text));
        }
    }
    tolerations(spec, path, problems);
    for (i, alias) in list(&spec["hostAliases"]).enumerate() {
        if alias["ip"]
            .as_str()
            .is_none_or(|ip| ip.parse::<std::net::IpAddr>().is_err())
        {
            problems.invalid(
                &format!("{path}.hostAliases[{i}].ip"),
                &alias["ip"],
                "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            );
        }
    }
}

fn container(container: &Value, spec: &Value, path: &str, problems: &mut Problems) {
    match container["name"].as_str() {
        None | Some("") => problems.required(&format!("{path}.name"), ""),
        Some(name) => problems.text(
            &format!("{path}.name"),
            &container["name"],
            names::dns1123_label(name),
        ),
    }
    match container["image"].as_str() {
        None | Some("") => problems.required(&format!("{path}.image"), ""),
        Some(image) if image.trim() != image => problems.invalid(
            &format!("{path}.image"),
            &container["image"],
            "must not have leading or trailing whitespace",
        ),
        Some(_) => {}
    }
    problems.one_of(
        &format!("{path}.imagePullPolicy"),
        &container["imagePullPolicy"],
        &["Always", "IfNotPresent", "Never"],
        Empty::Wrong,
    );
    ports(container, path, problems);
    for (i, variable) in list(&container["env"]).enumerate() {
        let path = format!("{path}.env[{i}]");
        if is_empty_text(&variable["name"]) {
            problems.required(&format!("{path}.name"), "");
        }
        if !is_empty_text(&variable["value"]) && variable["valueFrom"].is_object() {
            problems.invalid(
                &format!("{path}.valueFrom"),
                &Value::from(""),
                "may not be specified when `value` is not empty",
            );
        }
    }
    mounts(container, spec, path, problems);
    resources(&container["resources"], &format!("{path}.resources"), problems);
    for field in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if container[field].is_object() {
            probe(&container[field], field, &format!("{path}.{field}"), problems);
        }
    }
}

fn ports(container: &Value, path: &str, problems: &mut Problems) {
    let mut seen: Vec<&Value> = Vec::new();
    for (i, port) in list(&container["ports"]).enumerate() {
        let path = format!("{path}.ports[{i}]");
        if let Some(name) = port["name"].as_str().filter(|name| !name.is_empty()) {
            let complaints = port_name(name);
            if complaints.is_empty() && seen.contains(&&port["name"]) {
                problems.duplicate(&format!("{path}.name"), &port["name"]);
            }
            problems.text(&format!("{path}.name"), &port["name"], complaints);
            seen.push(&port["name"]);
        }
        if port["containerPort"].as_i64().unwrap_or_default() == 0 {
            problems.required(&format!("{path}.containerPort"), "");
        } else {
            problems.port(&format!("{path}.containerPort"), &port["containerPort"]);
        }
        if port["hostPort"].as_i64().unwrap_or_default() != 0 {
            problems.port(&format!("{path}.hostPort"), &port["hostPort"]);
        }
        problems.one_of(
            &format!("{path}.protocol"),
            &port["protocol"],
            PROTOCOLS,
            Empty::Wrong,
        );
    }
}

/// Containers of one pod can't share a port of the host.
fn host_ports(spec: &Value, path: &str, problems: &mut Problems) {
    let mut taken: Vec<String> = Vec::new();
    for (c, container) in list(&spec["containers"]).enumerate() {
        for (p, port) in list(&container["ports"]).enumerate() {
            let number = port["hostPort"].as_i64().unwrap_or_default();
            if number == 0 {
                continue;
            }
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let claim = format!("{}/{}/{number}", text(&port["protocol"]), text(&port["hostIP"]));
            if taken.contains(&claim) {
                let path = format!("{path}.containers[{c}].ports[{p}].hostPort");
                problems.duplicate(&path, &Value::from(claim.as_str()));
            }
            taken.push(claim);
        }
    }
}

fn mounts(container: &Value, spec: &Value, path: &str, problems: &mut Problems) {
    let mut seen: Vec<&Value> = Vec::new();
    for (i, mount) in list(&container["volumeMounts"]).enumerate() {
        let path = format!("{path}.volumeMounts[{i}]");
        if is_empty_text(&mount["name"]) {
            problems.required(&format!("{path}.name"), "");
        } else if !list(&spec["volumes"]).any(|volume| volume["name"] == mount["name"]) {
            problems.push(FieldError::not_found(&format!("{path}.name"), &mount["name"]));
        }
        if is_empty_text(&mount["mountPath"]) {
            problems.required(&format!("{path}.mountPath"), "");
        } else if seen.contains(&&mount["mountPath"]) {
            problems.invalid(
                &format!("{path}.mountPath"),
                &mount["mountPath"],
                "must be unique",
            );
        }
        seen.push(&mount["mountPath"]);
    }
}

fn resources(resources: &Value, path: &str, problems: &mut Problems) {
    let parse = |value: &Value| value.as_str().and_then(crate::quantity::parse);
    for kind in ["limits", "requests"] {
        for (name, value) in resources[kind].as_object().into_iter().flatten() {
            if parse(value).is_some_and(|amount| amount < 0) {
                problems.invalid(
                    &format!("{path}.{kind}[{name}]"),
                    value,
                    "must be greater than or equal to 0",
                );
            }
        }
    }
    for (name, request) in resources["requests"].as_object().into_iter().flatten() {
        let limit = &resources["limits"][name];
        if let (Some(wanted), Some(most)) = (parse(request), parse(limit))
            && wanted > most
        {
            problems.invalid(
                &format!("{path}.requests"),
                request,
                format!(
                    "must be less than or equal to {name} limit of {}",
                    limit.as_str().unwrap_or_default()
                ),
            );
        }
    }
}

fn probe(probe: &Value, kind: &str, path: &str, problems: &mut Problems) {
    let handlers: Vec<&str> = ["exec", "httpGet", "tcpSocket", "grpc"]
        .into_iter()
        .filter(|name| probe[*name].is_object())
        .collect();
    match handlers.as_slice() {
        [] => problems.required(path, "must specify a handler type"),
        [_] => {}
        [_, rest @ ..] => {
            for name in rest {
                problems.forbidden(
                    &format!("{path}.{name}"),
                    "may not specify more than 1 handler type",
                );
            }
        }
    }
    for handler in ["httpGet", "tcpSocket", "grpc"] {
        if probe[handler].is_object() {
            problems.port_or_name(&format!("{path}.{handler}.port"), &probe[handler]["port"]);
        }
    }
    for field in [
        "initialDelaySeconds",
        "timeoutSeconds",
        "periodSeconds",
        "successThreshold",
        "failureThreshold",
    ] {
        problems.not_negative(&format!("{path}.{field}"), &probe[field]);
    }
    if kind != "readinessProbe"
        && probe["successThreshold"]
            .as_i64()
            .is_some_and(|number| number != 1)
    {
        problems.invalid(
            &format!("{path}.successThreshold"),
            &probe["successThreshold"],
            "must be 1",
        );
    }
}

fn volumes(spec: &Value, path: &str, problems: &mut Problems) {
    let mut seen: Vec<&Value> = Vec::new();
    for (i, volume) in list(&spec["volumes"]).enumerate() {
        let path = format!("{path}.volumes[{i}]");
        match volume["name"].as_str() {
            None | Some("") => problems.required(&format!("{path}.name"), ""),
            Some(name) => {
                problems.text(
                    &format!("{path}.name"),
                    &volume["name"],
                    names::dns1123_label(name),
                );
                if seen.contains(&&volume["name"]) {
                    problems.duplicate(&format!("{path}.name"), &volume["name"]);
                }
                seen.push(&volume["name"]);
            }
        }
        let sources = volume
            .as_object()
            .map_or(0, |fields| fields.keys().filter(|key| *key != "name").count());
        if sources == 0 {
            problems.required(&path, "must specify a volume type");
        } else if sources > 1 {
            problems.forbidden(&path, "may not specify more than 1 volume type");
        }
    }
}

fn tolerations(spec: &Value, path: &str, problems: &mut Problems) {
    for (i, toleration) in list(&spec["tolerations"]).enumerate() {
        let path = format!("{path}.tolerations[{i}]");
        let key = toleration["key"].as_str().unwrap_or_default();
        if !key.is_empty() {
            problems.text(
                &format!("{path}.key"),
                &toleration["key"],
                names::qualified_name(key),
            );
        } else if toleration["operator"] != "Exists" {
            problems.invalid(
                &format!("{path}.operator"),
                &toleration["operator"],
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            );
        }
        problems.one_of(
            &format!("{path}.operator"),
            &toleration["operator"],
            &["Equal", "Exists", "Gt", "Lt"],
            Empty::Fine,
        );
        problems.one_of(
            &format!("{path}.effect"),
            &toleration["effect"],
            &["NoExecute", "NoSchedule", "PreferNoSchedule"],
            Empty::Fine,
        );
    }
}
