//! NetworkPolicy, Ingress, Endpoints, EndpointSlice.

use std::net::IpAddr;

use serde_json::Value;

use super::{Empty, PROTOCOLS, Problems, is_empty_text, list, port_name};
use crate::names;

const IP: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
const CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";

pub(super) fn policy(spec: &Value, problems: &mut Problems) {
    problems.label_selector("spec.podSelector", &spec["podSelector"]);
    for (rules, peers) in [("ingress", "from"), ("egress", "to")] {
        for (i, rule) in list(&spec[rules]).enumerate() {
            let path = format!("spec.{rules}[{i}]");
            for (p, port) in list(&rule["ports"]).enumerate() {
                policy_port(port, &format!("{path}.ports[{p}]"), problems);
            }
            for (p, one) in list(&rule[peers]).enumerate() {
                peer(one, &format!("{path}.{peers}[{p}]"), problems);
            }
        }
    }
    let types: Vec<&Value> = list(&spec["policyTypes"]).collect();
    if types.len() > 2 {
        problems.invalid(
            "spec.policyTypes",
            &spec["policyTypes"],
            "may not specify more than two policyTypes",
        );
        return;
    }
    for (i, one) in types.iter().enumerate() {
        problems.one_of(
            &format!("spec.policyTypes[{i}]"),
            one,
            &["Egress", "Ingress"],
            Empty::Wrong,
        );
    }
}

fn policy_port(port: &Value, path: &str, problems: &mut Problems) {
    problems.one_of(
        &format!("{path}.protocol"),
        &port["protocol"],
        PROTOCOLS,
        Empty::Fine,
    );
    let (number, end) = (&port["port"], &port["endPort"]);
    match number {
        Value::Null => {
            if !end.is_null() {
                problems.invalid(
                    &format!("{path}.endPort"),
                    end,
                    "may not be specified when `port` is not specified",
                );
            }
        }
        Value::String(name) => {
            problems.text(&format!("{path}.port"), number, port_name(name));
            if !end.is_null() {
                problems.invalid(
                    &format!("{path}.endPort"),
                    end,
                    "may not be specified when `port` is non-numeric",
                );
            }
        }
        _ => {
            problems.port(&format!("{path}.port"), number);
            if let (Some(first), Some(last)) = (number.as_i64(), end.as_i64()) {
                if last < first {
                    problems.invalid(
                        &format!("{path}.endPort"),
                        end,
                        "must be greater than or equal to `port`",
                    );
                }
                problems.port(&format!("{path}.endPort"), end);
            }
        }
    }
}

fn peer(peer: &Value, path: &str, problems: &mut Problems) {
    let mut kinds = 0;
    for field in ["podSelector", "namespaceSelector"] {
        if peer[field].is_object() {
            kinds += 1;
            problems.label_selector(&format!("{path}.{field}"), &peer[field]);
        }
    }
    if peer["ipBlock"].is_object() {
        if kinds > 0 {
            problems.forbidden(path, "may not specify both ipBlock and another peer");
        }
        kinds += 1;
        ip_block(&peer["ipBlock"], &format!("{path}.ipBlock"), problems);
    }
    if kinds == 0 {
        problems.required(path, "must specify a peer");
    }
}

fn ip_block(block: &Value, path: &str, problems: &mut Problems) {
    let cidr_path = format!("{path}.cidr");
    if is_empty_text(&block["cidr"]) {
        problems.required(&cidr_path, "");
        return;
    }
    let Some(whole) = block["cidr"].as_str().and_then(network) else {
        problems.invalid(&cidr_path, &block["cidr"], CIDR);
        return;
    };
    for (i, except) in list(&block["except"]).enumerate() {
        let path = format!("{path}.except[{i}]");
        match except.as_str().and_then(network) {
            None => problems.invalid(&path, except, CIDR),
            Some(part)
                if part.0.is_ipv4() != whole.0.is_ipv4()
                    || part.1 <= whole.1
                    || masked(part.0, whole.1) != masked(whole.0, whole.1) =>
            {
                problems.invalid(&path, except, "must be a strict subset of `cidr`");
            }
            Some(_) => {}
        }
    }
}

/// Address and prefix length; host bits may be set, as the real server allows for stored objects.
fn network(text: &str) -> Option<(IpAddr, u8)> {
    let (address, length) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    // Go refuses signs and leading zeros.
    let canonical = length
        .parse::<u8>()
        .ok()
        .filter(|number| number.to_string() == length)?;
    (canonical <= if address.is_ipv4() { 32 } else { 128 }).then_some((address, canonical))
}

fn masked(address: IpAddr, length: u8) -> u128 {
    let (bits, width) = match address {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()), 32),
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    };
    bits.checked_shr(u32::from(width - length)).unwrap_or(0)
}

pub(super) fn ingress(spec: &Value, problems: &mut Problems) {
    if list(&spec["rules"]).next().is_none() && !spec["defaultBackend"].is_object() {
        problems.invalid(
            "spec",
            spec,
            "either `defaultBackend` or `rules` must be specified",
        );
    }
    if spec["defaultBackend"].is_object() {
        backend(&spec["defaultBackend"], "spec.defaultBackend", problems);
    }
    for (i, rule) in list(&spec["rules"]).enumerate() {
        if let Some(host) = rule["host"].as_str().filter(|host| !host.is_empty()) {
            let plain = host.strip_prefix("*.").unwrap_or(host);
            problems.text(
                &format!("spec.rules[{i}].host"),
                &rule["host"],
                names::dns1123_subdomain(plain),
            );
        }
        if rule["http"].is_object() && list(&rule["http"]["paths"]).next().is_none() {
            problems.required(&format!("spec.rules[{i}].http.paths"), "");
        }
        for (p, one) in list(&rule["http"]["paths"]).enumerate() {
            let path = format!("spec.rules[{i}].http.paths[{p}]");
            if is_empty_text(&one["pathType"]) {
                problems.required(&format!("{path}.pathType"), "pathType must be specified");
            } else {
                problems.one_of(
                    &format!("{path}.pathType"),
                    &one["pathType"],
                    &["Exact", "ImplementationSpecific", "Prefix"],
                    Empty::Wrong,
                );
                let text = one["path"].as_str().unwrap_or_default();
                if one["pathType"] != "ImplementationSpecific" && !text.starts_with('/') {
                    problems.invalid(&format!("{path}.path"), &one["path"], "must be an absolute path");
                }
            }
            backend(&one["backend"], &format!("{path}.backend"), problems);
        }
    }
}

fn backend(backend: &Value, path: &str, problems: &mut Problems) {
    if backend["resource"].is_object() {
        if backend["service"].is_object() {
            problems.invalid(
                path,
                &Value::from(""),
                "cannot set both resource and service backends",
            );
        }
        return;
    }
    let service = &backend["service"];
    if !service.is_object() {
        problems.required(path, "resource or service backend is required");
        return;
    }
    if is_empty_text(&service["name"]) {
        problems.required(&format!("{path}.service.name"), "");
    }
    let port = &service["port"];
    if is_empty_text(&port["name"]) && port["number"].as_i64().unwrap_or_default() == 0 {
        problems.required(path, "port name or number is required");
    }
}

pub(super) fn endpoints(object: &Value, problems: &mut Problems) {
    for (i, subset) in list(&object["subsets"]).enumerate() {
        for kind in ["addresses", "notReadyAddresses"] {
            for (a, address) in list(&subset[kind]).enumerate() {
                if address["ip"]
                    .as_str()
                    .is_none_or(|ip| ip.parse::<IpAddr>().is_err())
                {
                    problems.invalid(&format!("subsets[{i}].{kind}[{a}].ip"), &address["ip"], IP);
                }
            }
        }
        for (p, port) in list(&subset["ports"]).enumerate() {
            problems.port(&format!("subsets[{i}].ports[{p}].port"), &port["port"]);
            problems.one_of(
                &format!("subsets[{i}].ports[{p}].protocol"),
                &port["protocol"],
                PROTOCOLS,
                Empty::Wrong,
            );
        }
    }
}

pub(super) fn endpoint_slice(object: &Value, problems: &mut Problems) {
    problems.one_of(
        "addressType",
        &object["addressType"],
        &["FQDN", "IPv4", "IPv6"],
        Empty::Wrong,
    );
    for (i, endpoint) in list(&object["endpoints"]).enumerate() {
        let path = format!("endpoints[{i}].addresses");
        if list(&endpoint["addresses"]).next().is_none() {
            problems.required(&path, "must contain at least 1 address");
        }
        for (a, address) in list(&endpoint["addresses"]).enumerate() {
            let text = address.as_str().unwrap_or_default();
            let wrong = match object["addressType"].as_str() {
                Some("IPv4") => text
                    .parse::<std::net::Ipv4Addr>()
                    .err()
                    .map(|_| "must be an IPv4 address"),
                Some("IPv6") => text
                    .parse::<std::net::Ipv6Addr>()
                    .err()
                    .map(|_| "must be an IPv6 address"),
                _ => None,
            };
            if let Some(wrong) = wrong {
                problems.invalid(&format!("{path}[{a}]"), address, wrong);
            }
        }
    }
    let ports: Vec<&Value> = list(&object["ports"]).collect();
    for (i, port) in ports.iter().enumerate() {
        problems.one_of(
            &format!("ports[{i}].protocol"),
            &port["protocol"],
            PROTOCOLS,
            Empty::Wrong,
        );
        if ports[..i].iter().any(|other| other["name"] == port["name"]) {
            problems.duplicate(&format!("ports[{i}].name"), &port["name"]);
        }
    }
}
