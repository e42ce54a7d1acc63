//! What leads to pods, and what may.

use serde_json::Value;

use super::cells::{count, created, labels, list, name, or_none, selector, shown, str_at};
use super::{AGE, NAME, Printer, text, wide};

pub(super) static SERVICE: Printer = Printer {
    columns: &[
        NAME,
        text("Type"),
        text("Cluster-IP"),
        text("External-IP"),
        text("Port(s)"),
        AGE,
        wide("Selector"),
    ],
    cells: |service| {
        vec![
            name(service),
            str_at(service, "/spec/type").into(),
            or_none(str_at(service, "/spec/clusterIP")),
            external_ip(service).into(),
            ports(service).into(),
            created(service),
            labels(&service["spec"]["selector"]).into(),
        ]
    },
};

fn external_ip(service: &Value) -> String {
    let fixed: Vec<&str> = list(service, "/spec/externalIPs")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    match str_at(service, "/spec/type") {
        "ExternalName" => str_at(service, "/spec/externalName").to_owned(),
        "LoadBalancer" => {
            let mut all: Vec<&str> = list(service, "/status/loadBalancer/ingress")
                .iter()
                .map(|ingress| match str_at(ingress, "/ip") {
                    "" => str_at(ingress, "/hostname"),
                    ip => ip,
                })
                .collect();
            all.extend(fixed);
            if all.is_empty() {
                "<pending>".to_owned()
            } else {
                all.join(",")
            }
        }
        _ if fixed.is_empty() => "<none>".to_owned(),
        _ => fixed.join(","),
    }
}

fn ports(service: &Value) -> String {
    let all: Vec<String> = list(service, "/spec/ports")
        .iter()
        .map(|port| {
            let (number, protocol) = (count(port, "/port"), str_at(port, "/protocol"));
            match count(port, "/nodePort") {
                0 => format!("{number}/{protocol}"),
                node => format!("{number}:{node}/{protocol}"),
            }
        })
        .collect();
    if all.is_empty() {
        "<none>".to_owned()
    } else {
        all.join(",")
    }
}

/// At most three, then how many more there are.
fn abridged(all: &[String]) -> String {
    match all {
        [] => "<none>".to_owned(),
        [a, b, c, rest @ ..] if !rest.is_empty() => format!("{a},{b},{c} + {} more...", rest.len()),
        few => few.join(","),
    }
}

pub(super) static ENDPOINTS: Printer = Printer {
    columns: &[NAME, text("Endpoints"), AGE],
    cells: |object| {
        let mut all = Vec::new();
        for subset in list(object, "/subsets") {
            let ports = list(subset, "/ports");
            for address in list(subset, "/addresses") {
                let ip = str_at(address, "/ip");
                if ports.is_empty() {
                    all.push(ip.to_owned());
                }
                all.extend(ports.iter().map(|port| format!("{ip}:{}", count(port, "/port"))));
            }
        }
        vec![name(object), abridged(&all).into(), created(object)]
    },
};

pub(super) static ENDPOINT_SLICE: Printer = Printer {
    columns: &[NAME, text("AddressType"), text("Ports"), text("Endpoints"), AGE],
    cells: |object| {
        let ports: Vec<String> = list(object, "/ports")
            .iter()
            .map(|port| shown(&port["port"], "*"))
            .collect();
        let addresses: Vec<String> = list(object, "/endpoints")
            .iter()
            .flat_map(|endpoint| list(endpoint, "/addresses"))
            .filter_map(|address| address.as_str().map(str::to_owned))
            .collect();
        let unset = |text: String| {
            if text == "<none>" {
                "<unset>".to_owned()
            } else {
                text
            }
        };
        vec![
            name(object),
            str_at(object, "/addressType").into(),
            unset(abridged(&ports)).into(),
            unset(abridged(&addresses)).into(),
            created(object),
        ]
    },
};

pub(super) static INGRESS: Printer = Printer {
    columns: &[
        NAME,
        text("Class"),
        text("Hosts"),
        text("Address"),
        text("Ports"),
        AGE,
    ],
    cells: |object| {
        let hosts: Vec<String> = list(object, "/spec/rules")
            .iter()
            .map(|rule| str_at(rule, "/host").to_owned())
            .filter(|host| !host.is_empty())
            .collect();
        let hosts = if hosts.is_empty() {
            "*".to_owned()
        } else {
            abridged(&hosts)
        };
        let addresses: Vec<&str> = list(object, "/status/loadBalancer/ingress")
            .iter()
            .map(|ingress| match str_at(ingress, "/ip") {
                "" => str_at(ingress, "/hostname"),
                ip => ip,
            })
            .collect();
        let tls = !list(object, "/spec/tls").is_empty();
        vec![
            name(object),
            or_none(str_at(object, "/spec/ingressClassName")),
            hosts.into(),
            addresses.join(",").into(),
            if tls { "80, 443" } else { "80" }.into(),
            created(object),
        ]
    },
};

pub(super) static INGRESS_CLASS: Printer = Printer {
    columns: &[NAME, text("Controller"), text("Parameters"), AGE],
    cells: |object| {
        let parameters = &object["spec"]["parameters"];
        let shown = if parameters.is_object() {
            format!("{}/{}", str_at(parameters, "/kind"), str_at(parameters, "/name"))
        } else {
            "<none>".to_owned()
        };
        vec![
            name(object),
            str_at(object, "/spec/controller").into(),
            shown.into(),
            created(object),
        ]
    },
};

pub(super) static NETWORK_POLICY: Printer = Printer {
    columns: &[NAME, text("Pod-Selector"), AGE],
    cells: |object| {
        vec![
            name(object),
            selector(&object["spec"]["podSelector"]).into(),
            created(object),
        ]
    },
};
