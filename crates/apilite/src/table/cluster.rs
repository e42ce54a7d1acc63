//! Nodes, namespaces, services, configuration.

use serde_json::Value;

use super::cells::{age, count, created, labels, list, map, name, or_none, selector, shown, size, str_at};
use super::{AGE, NAME, Printer, number, text, wide};

/// What has no printer of its own.
pub(super) static PLAIN: Printer = Printer {
    columns: &[NAME, text("Created At")],
    cells: |object| vec![name(object), object["metadata"]["creationTimestamp"].clone()],
};

pub(super) static NAMESPACE: Printer = Printer {
    columns: &[NAME, text("Status"), AGE],
    cells: |object| {
        vec![
            name(object),
            str_at(object, "/status/phase").into(),
            created(object),
        ]
    },
};

pub(super) static NODE: Printer = Printer {
    columns: &[
        NAME,
        text("Status"),
        text("Roles"),
        AGE,
        text("Version"),
        wide("Internal-IP"),
        wide("External-IP"),
        wide("OS-Image"),
        wide("Kernel-Version"),
        wide("Container-Runtime"),
    ],
    cells: |node| {
        let address = |kind: &str| {
            let found = list(node, "/status/addresses")
                .iter()
                .find(|address| address["type"] == kind);
            or_none(found.map_or("", |address| str_at(address, "/address")))
        };
        let info = |field: &str| match str_at(node, &format!("/status/nodeInfo/{field}")) {
            "" => Value::from("<unknown>"),
            text => text.into(),
        };
        vec![
            name(node),
            node_status(node).into(),
            roles(node).into(),
            created(node),
            str_at(node, "/status/nodeInfo/kubeletVersion").into(),
            address("InternalIP"),
            address("ExternalIP"),
            info("osImage"),
            info("kernelVersion"),
            info("containerRuntimeVersion"),
        ]
    },
};

fn node_status(node: &Value) -> String {
    let ready = list(node, "/status/conditions")
        .iter()
        .find(|condition| condition["type"] == "Ready");
    let mut status = match ready.map(|condition| condition["status"] == "True") {
        Some(true) => "Ready",
        Some(false) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if node["spec"]["unschedulable"] == true {
        status.push_str(",SchedulingDisabled");
    }
    status
}

fn roles(node: &Value) -> String {
    let mut roles: Vec<&str> = map(node, "/metadata/labels")
        .filter_map(
            |(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
                Some(role) => Some(role),
                None if key == "kubernetes.io/role" => value.as_str(),
                None => None,
            },
        )
        .filter(|role| !role.is_empty())
        .collect();
    roles.sort_unstable();
    if roles.is_empty() {
        "<none>".to_owned()
    } else {
        roles.join(",")
    }
}

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

pub(super) static EVENT: Printer = Printer {
    columns: &[
        text("Last Seen"),
        text("Type"),
        text("Reason"),
        text("Object"),
        wide("Subobject"),
        wide("Source"),
        text("Message"),
        wide("First Seen"),
        wide("Count"),
        super::Column {
            name: "Name",
            kind: "string",
            wide: true,
        },
    ],
    cells: event,
};

/// Either form of an event: core/v1 or events.k8s.io/v1.
fn event(event: &Value) -> Vec<Value> {
    let either = |a: &str, b: &str| match event.pointer(a) {
        Some(value) if !value.is_null() => value.clone(),
        _ => event.pointer(b).cloned().unwrap_or_default(),
    };
    let involved = either("/involvedObject", "/regarding");
    let source = either("/source", "/deprecatedSource");
    let since = |value: &Value| {
        if value.is_string() {
            age(value)
        } else {
            age(&event["eventTime"])
        }
    };
    let first = either("/firstTimestamp", "/deprecatedFirstTimestamp");
    let last = match event.pointer("/series/lastObservedTime") {
        Some(observed) if observed.is_string() => observed.clone(),
        _ => match either("/lastTimestamp", "/deprecatedLastTimestamp") {
            Value::Null => first.clone(),
            last => last,
        },
    };
    let times = match event.pointer("/series/count").and_then(Value::as_i64) {
        Some(series) => series,
        None => either("/count", "/deprecatedCount")
            .as_i64()
            .filter(|count| *count > 0)
            .unwrap_or(1),
    };
    let component = match str_at(&source, "/component") {
        "" => shown(&either("/reportingComponent", "/reportingController"), ""),
        component => component.to_owned(),
    };
    let host = match str_at(&source, "/host") {
        "" => str_at(event, "/reportingInstance"),
        host => host,
    };
    let object = format!(
        "{}/{}",
        str_at(&involved, "/kind").to_lowercase(),
        str_at(&involved, "/name")
    );
    let source = if host.is_empty() {
        component
    } else {
        format!("{component}, {host}")
    };
    let message = either("/message", "/note");
    vec![
        since(&last).into(),
        str_at(event, "/type").into(),
        str_at(event, "/reason").into(),
        object.into(),
        str_at(&involved, "/fieldPath").into(),
        source.into(),
        message.as_str().unwrap_or_default().trim().into(),
        since(&first).into(),
        times.to_string().into(),
        name(event),
    ]
}

pub(super) static CONFIG_MAP: Printer = Printer {
    columns: &[NAME, number("Data"), AGE],
    cells: |object| {
        let entries = size(object, "/data") + size(object, "/binaryData");
        vec![name(object), entries.into(), created(object)]
    },
};

pub(super) static SECRET: Printer = Printer {
    columns: &[NAME, text("Type"), number("Data"), AGE],
    cells: |object| {
        vec![
            name(object),
            str_at(object, "/type").into(),
            size(object, "/data").into(),
            created(object),
        ]
    },
};

pub(super) static SERVICE_ACCOUNT: Printer = Printer {
    columns: &[NAME, number("Secrets"), AGE],
    cells: |object| {
        vec![
            name(object),
            list(object, "/secrets").len().into(),
            created(object),
        ]
    },
};

fn access_modes(modes: &[Value]) -> String {
    let short = modes.iter().filter_map(Value::as_str).map(|mode| match mode {
        "ReadWriteOnce" => "RWO",
        "ReadOnlyMany" => "ROX",
        "ReadWriteMany" => "RWX",
        "ReadWriteOncePod" => "RWOP",
        other => other,
    });
    short.collect::<Vec<_>>().join(",")
}

pub(super) static VOLUME: Printer = Printer {
    columns: &[
        NAME,
        text("Capacity"),
        text("Access Modes"),
        text("Reclaim Policy"),
        text("Status"),
        text("Claim"),
        text("StorageClass"),
        text("VolumeAttributesClass"),
        text("Reason"),
        AGE,
        wide("VolumeMode"),
    ],
    cells: |object| {
        let claim = &object["spec"]["claimRef"];
        let claim = if claim.is_object() {
            format!("{}/{}", str_at(claim, "/namespace"), str_at(claim, "/name"))
        } else {
            String::new()
        };
        let unset = |pointer: &str| match str_at(object, pointer) {
            "" => Value::from("<unset>"),
            text => text.into(),
        };
        vec![
            name(object),
            str_at(object, "/spec/capacity/storage").into(),
            access_modes(list(object, "/spec/accessModes")).into(),
            str_at(object, "/spec/persistentVolumeReclaimPolicy").into(),
            str_at(object, "/status/phase").into(),
            claim.into(),
            str_at(object, "/spec/storageClassName").into(),
            unset("/spec/volumeAttributesClassName"),
            str_at(object, "/status/reason").into(),
            created(object),
            unset("/spec/volumeMode"),
        ]
    },
};

pub(super) static CLAIM: Printer = Printer {
    columns: &[
        NAME,
        text("Status"),
        text("Volume"),
        text("Capacity"),
        text("Access Modes"),
        text("StorageClass"),
        text("VolumeAttributesClass"),
        AGE,
        wide("VolumeMode"),
    ],
    cells: |object| {
        let terminating = object["metadata"]["deletionTimestamp"].is_string();
        let bound = !str_at(object, "/spec/volumeName").is_empty();
        let unset = |pointer: &str| match str_at(object, pointer) {
            "" => Value::from("<unset>"),
            text => text.into(),
        };
        vec![
            name(object),
            if terminating {
                "Terminating"
            } else {
                str_at(object, "/status/phase")
            }
            .into(),
            str_at(object, "/spec/volumeName").into(),
            if bound {
                str_at(object, "/status/capacity/storage")
            } else {
                ""
            }
            .into(),
            if bound {
                access_modes(list(object, "/status/accessModes"))
            } else {
                String::new()
            }
            .into(),
            str_at(object, "/spec/storageClassName").into(),
            unset("/spec/volumeAttributesClassName"),
            created(object),
            unset("/spec/volumeMode"),
        ]
    },
};

pub(super) static QUOTA: Printer = Printer {
    columns: &[NAME, text("Request"), text("Limit"), AGE],
    cells: |object| {
        let rows = |limits: bool| {
            let all: Vec<String> = map(object, "/status/hard")
                .filter(|(key, _)| key.starts_with("limits.") == limits)
                .map(|(key, hard)| {
                    format!(
                        "{key}: {}/{}",
                        shown(&object["status"]["used"][key], "0"),
                        shown(hard, "0")
                    )
                })
                .collect();
            all.join(", ")
        };
        vec![
            name(object),
            rows(false).into(),
            rows(true).into(),
            created(object),
        ]
    },
};

pub(super) static ROLE_BINDING: Printer = Printer {
    columns: &[
        NAME,
        text("Role"),
        AGE,
        wide("Users"),
        wide("Groups"),
        wide("ServiceAccounts"),
    ],
    cells: |object| {
        let subjects = |kind: &str| {
            let all: Vec<String> = list(object, "/subjects")
                .iter()
                .filter(|subject| subject["kind"] == kind)
                .map(|subject| match str_at(subject, "/namespace") {
                    "" => str_at(subject, "/name").to_owned(),
                    namespace => format!("{namespace}/{}", str_at(subject, "/name")),
                })
                .collect();
            Value::from(all.join(", "))
        };
        let role = format!(
            "{}/{}",
            str_at(object, "/roleRef/kind"),
            str_at(object, "/roleRef/name")
        );
        vec![
            name(object),
            role.into(),
            created(object),
            subjects("User"),
            subjects("Group"),
            subjects("ServiceAccount"),
        ]
    },
};

pub(super) static STORAGE_CLASS: Printer = Printer {
    columns: &[
        NAME,
        text("Provisioner"),
        text("ReclaimPolicy"),
        text("VolumeBindingMode"),
        super::Column {
            name: "AllowVolumeExpansion",
            kind: "boolean",
            wide: false,
        },
        AGE,
    ],
    cells: |object| {
        let default = "storageclass.kubernetes.io/is-default-class";
        let mut title = str_at(object, "/metadata/name").to_owned();
        if object["metadata"]["annotations"][default] == "true" {
            title.push_str(" (default)");
        }
        vec![
            title.into(),
            str_at(object, "/provisioner").into(),
            str_at(object, "/reclaimPolicy").into(),
            str_at(object, "/volumeBindingMode").into(),
            (object["allowVolumeExpansion"] == true).into(),
            created(object),
        ]
    },
};

pub(super) static PRIORITY_CLASS: Printer = Printer {
    columns: &[
        NAME,
        number("Value"),
        super::Column {
            name: "Global-Default",
            kind: "boolean",
            wide: false,
        },
        AGE,
        text("PreemptionPolicy"),
    ],
    cells: |object| {
        vec![
            name(object),
            count(object, "/value").into(),
            (object["globalDefault"] == true).into(),
            created(object),
            str_at(object, "/preemptionPolicy").into(),
        ]
    },
};

pub(super) static LEASE: Printer = Printer {
    columns: &[NAME, text("Holder"), AGE],
    cells: |object| {
        vec![
            name(object),
            str_at(object, "/spec/holderIdentity").into(),
            created(object),
        ]
    },
};

pub(super) static WEBHOOKS: Printer = Printer {
    columns: &[NAME, number("Webhooks"), AGE],
    cells: |object| {
        vec![
            name(object),
            list(object, "/webhooks").len().into(),
            created(object),
        ]
    },
};
