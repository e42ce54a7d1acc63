//! Services.

use std::net::IpAddr;

use serde_json::Value;

use super::{Empty, PROTOCOLS, Problems, is_empty_text, list};
use crate::names;

pub(super) fn service(spec: &Value, problems: &mut Problems) {
    let kind = spec["type"].as_str().unwrap_or_default();
    let headless = spec["clusterIP"] == "None";
    if list(&spec["ports"]).next().is_none() && !headless && kind != "ExternalName" {
        problems.required("spec.ports", "");
    }
    problems.one_of(
        "spec.type",
        &spec["type"],
        &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"],
        Empty::Wrong,
    );
    problems.one_of(
        "spec.sessionAffinity",
        &spec["sessionAffinity"],
        &["ClientIP", "None"],
        Empty::Wrong,
    );
    problems.labels("spec.selector", &spec["selector"]);
    match kind {
        "ExternalName" => {
            match spec["externalName"].as_str() {
                None | Some("") => problems.required("spec.externalName", ""),
                Some(name) => {
                    let name = name.trim_end_matches('.');
                    problems.text(
                        "spec.externalName",
                        &spec["externalName"],
                        names::dns1123_subdomain(name),
                    );
                }
            }
            if !is_empty_text(&spec["clusterIP"]) {
                problems.forbidden(
                    "spec.clusterIPs[0]",
                    "may not be set when `type` is 'ExternalName'",
                );
            }
        }
        "NodePort" | "LoadBalancer" if headless => {
            problems.invalid(
                "spec.clusterIPs[0]",
                &spec["clusterIP"],
                format!("may not be set to 'None' for {kind} services"),
            );
        }
        _ => {}
    }
    if let Some(address) = spec["clusterIP"]
        .as_str()
        .filter(|text| !text.is_empty() && *text != "None")
        && address.parse::<IpAddr>().is_err()
    {
        problems.invalid(
            "spec.clusterIPs[0]",
            &spec["clusterIP"],
            "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        );
    }
    for (i, address) in list(&spec["externalIPs"]).enumerate() {
        if address
            .as_str()
            .is_none_or(|text| text.parse::<IpAddr>().is_err())
        {
            problems.invalid(
                &format!("spec.externalIPs[{i}]"),
                address,
                "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            );
        }
    }
    ports(spec, kind, problems);
}

fn ports(spec: &Value, kind: &str, problems: &mut Problems) {
    let several = list(&spec["ports"]).count() > 1;
    let takes_node_ports = matches!(kind, "NodePort" | "LoadBalancer");
    let all: Vec<&Value> = list(&spec["ports"]).collect();
    for (i, port) in all.iter().enumerate() {
        let path = format!("spec.ports[{i}]");
        match port["name"].as_str() {
            None | Some("") if several => problems.required(&format!("{path}.name"), ""),
            None | Some("") => {}
            Some(name) => {
                problems.text(&format!("{path}.name"), &port["name"], names::dns1123_label(name));
                if all[..i].iter().any(|other| other["name"] == port["name"]) {
                    problems.duplicate(&format!("{path}.name"), &port["name"]);
                }
            }
        }
        problems.port(&format!("{path}.port"), &port["port"]);
        problems.one_of(
            &format!("{path}.protocol"),
            &port["protocol"],
            PROTOCOLS,
            Empty::Wrong,
        );
        if kind != "ExternalName" || !port["targetPort"].is_null() {
            problems.port_or_name(&format!("{path}.targetPort"), &port["targetPort"]);
        }
        if !takes_node_ports && port["nodePort"].as_i64().unwrap_or_default() != 0 {
            problems.forbidden(
                &format!("{path}.nodePort"),
                format!("may not be used when `type` is '{kind}'"),
            );
        }
        let same = |other: &&Value| other["port"] == port["port"] && other["protocol"] == port["protocol"];
        if all[..i].iter().any(same) {
            let duplicate = serde_json::json!({ "port": port["port"], "protocol": port["protocol"] });
            problems.duplicate(&path, &duplicate);
        }
    }
}

pub(super) fn update(spec: &Value, old: &Value, problems: &mut Problems) {
    let keeps_address = |spec: &Value| spec["type"] != "ExternalName";
    if keeps_address(spec)
        && keeps_address(old)
        && !is_empty_text(&old["clusterIP"])
        && spec["clusterIP"] != old["clusterIP"]
    {
        problems.invalid(
            "spec.clusterIPs[0]",
            &spec["clusterIPs"],
            "may not change once set",
        );
    }
}
