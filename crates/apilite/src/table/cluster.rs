//! Nodes, namespaces, configuration, rights.

use serde_json::Value;

use super::cells::{age, count, created, list, map, name, or_none, shown, size, str_at};
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
