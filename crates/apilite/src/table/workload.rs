//! Workloads.

use serde_json::Value;

use super::cells::{
    age, containers, count, created, duration, labels, list, name, or_none, selector, shown, str_at,
};
use super::{AGE, Column, NAME, Printer, number, text, wide};

const CONTAINERS: Column = wide("Containers");
const IMAGES: Column = wide("Images");
const SELECTOR: Column = wide("Selector");

/// Containers, images and selector of a workload's template.
fn template(object: &Value) -> [Value; 3] {
    let (names, images) = containers(&object["spec"]["template"]["spec"]);
    [
        names.into(),
        images.into(),
        selector(&object["spec"]["selector"]).into(),
    ]
}

pub(super) static POD_TEMPLATE: Printer = Printer {
    columns: &[NAME, text("Containers"), text("Images"), text("Pod Labels")],
    cells: |object| {
        let (names, images) = containers(&object["template"]["spec"]);
        vec![
            name(object),
            names.into(),
            images.into(),
            labels(&object["template"]["metadata"]["labels"]).into(),
        ]
    },
};

pub(super) static REPLICA_SET: Printer = Printer {
    columns: &[
        NAME,
        number("Desired"),
        number("Current"),
        number("Ready"),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    cells: |object| {
        let mut cells = vec![
            name(object),
            count(object, "/spec/replicas").into(),
            count(object, "/status/replicas").into(),
            count(object, "/status/readyReplicas").into(),
            created(object),
        ];
        cells.extend(template(object));
        cells
    },
};

pub(super) static DEPLOYMENT: Printer = Printer {
    columns: &[
        NAME,
        text("Ready"),
        number("Up-to-date"),
        number("Available"),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    cells: |object| {
        let (ready, wanted) = (
            count(object, "/status/readyReplicas"),
            count(object, "/spec/replicas"),
        );
        let mut cells = vec![
            name(object),
            format!("{ready}/{wanted}").into(),
            count(object, "/status/updatedReplicas").into(),
            count(object, "/status/availableReplicas").into(),
            created(object),
        ];
        cells.extend(template(object));
        cells
    },
};

pub(super) static STATEFUL_SET: Printer = Printer {
    columns: &[NAME, text("Ready"), AGE, CONTAINERS, IMAGES],
    cells: |object| {
        let (ready, wanted) = (
            count(object, "/status/readyReplicas"),
            count(object, "/spec/replicas"),
        );
        let [names, images, _] = template(object);
        vec![
            name(object),
            format!("{ready}/{wanted}").into(),
            created(object),
            names,
            images,
        ]
    },
};

pub(super) static DAEMON_SET: Printer = Printer {
    columns: &[
        NAME,
        number("Desired"),
        number("Current"),
        number("Ready"),
        number("Up-to-date"),
        number("Available"),
        text("Node Selector"),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    cells: |object| {
        let mut cells = vec![
            name(object),
            count(object, "/status/desiredNumberScheduled").into(),
            count(object, "/status/currentNumberScheduled").into(),
            count(object, "/status/numberReady").into(),
            count(object, "/status/updatedNumberScheduled").into(),
            count(object, "/status/numberAvailable").into(),
            labels(&object["spec"]["template"]["spec"]["nodeSelector"]).into(),
            created(object),
        ];
        cells.extend(template(object));
        cells
    },
};

pub(super) static CONTROLLER_REVISION: Printer = Printer {
    columns: &[NAME, text("Controller"), number("Revision"), AGE],
    cells: |object| {
        let owner = list(object, "/metadata/ownerReferences")
            .iter()
            .find(|owner| owner["controller"] == true);
        let owner = owner.map_or_else(
            || "<none>".to_owned(),
            |owner| {
                let (group, _) = str_at(owner, "/apiVersion").split_once('/').unwrap_or_default();
                let kind = str_at(owner, "/kind").to_lowercase();
                let kind = if group.is_empty() {
                    kind
                } else {
                    format!("{kind}.{group}")
                };
                format!("{kind}/{}", str_at(owner, "/name"))
            },
        );
        vec![
            name(object),
            owner.into(),
            count(object, "/revision").into(),
            created(object),
        ]
    },
};

pub(super) static JOB: Printer = Printer {
    columns: &[
        NAME,
        text("Status"),
        text("Completions"),
        text("Duration"),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    cells: |object| {
        let succeeded = count(object, "/status/succeeded");
        let completions = match (&object["spec"]["completions"], count(object, "/spec/parallelism")) {
            (Value::Null, parallelism @ 2..) => format!("{succeeded}/1 of {parallelism}"),
            (Value::Null, _) => format!("{succeeded}/1"),
            (completions, _) => format!("{succeeded}/{completions}"),
        };
        let mut cells = vec![
            name(object),
            job_status(object).into(),
            completions.into(),
            job_duration(object).into(),
            created(object),
        ];
        cells.extend(template(object));
        cells
    },
};

fn job_status(job: &Value) -> &'static str {
    let has = |kind: &str| {
        list(job, "/status/conditions")
            .iter()
            .any(|c| c["type"] == kind && c["status"] == "True")
    };
    if has("Complete") {
        "Complete"
    } else if has("Failed") {
        "Failed"
    } else if job["metadata"]["deletionTimestamp"].is_string() {
        "Terminating"
    } else if has("Suspended") {
        "Suspended"
    } else if has("FailureTarget") {
        "FailureTarget"
    } else if has("SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    }
}

fn job_duration(job: &Value) -> String {
    let time = |pointer: &str| str_at(job, pointer).parse::<jiff::Timestamp>().ok();
    match (time("/status/startTime"), time("/status/completionTime")) {
        (None, _) => String::new(),
        (Some(_), None) => age(&job["status"]["startTime"]),
        (Some(start), Some(end)) => duration(end.as_second() - start.as_second()),
    }
}

pub(super) static CRON_JOB: Printer = Printer {
    columns: &[
        NAME,
        text("Schedule"),
        text("Timezone"),
        text("Suspend"),
        number("Active"),
        text("Last Schedule"),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    cells: |object| {
        let last = &object["status"]["lastScheduleTime"];
        let (names, images) = containers(&object["spec"]["jobTemplate"]["spec"]["template"]["spec"]);
        vec![
            name(object),
            str_at(object, "/spec/schedule").into(),
            or_none(str_at(object, "/spec/timeZone")),
            if object["spec"]["suspend"] == true {
                "True"
            } else {
                "False"
            }
            .into(),
            list(object, "/status/active").len().into(),
            if last.is_string() {
                age(last)
            } else {
                "<none>".to_owned()
            }
            .into(),
            created(object),
            names.into(),
            images.into(),
            selector(&object["spec"]["jobTemplate"]["spec"]["selector"]).into(),
        ]
    },
};

pub(super) static AUTOSCALER: Printer = Printer {
    columns: &[
        NAME,
        text("Reference"),
        text("Targets"),
        text("MinPods"),
        text("MaxPods"),
        number("Replicas"),
        AGE,
    ],
    cells: |object| {
        let reference = format!(
            "{}/{}",
            str_at(object, "/spec/scaleTargetRef/kind"),
            str_at(object, "/spec/scaleTargetRef/name")
        );
        vec![
            name(object),
            reference.into(),
            targets(object).into(),
            shown(&object["spec"]["minReplicas"], "<unset>").into(),
            count(object, "/spec/maxReplicas").to_string().into(),
            count(object, "/status/currentReplicas").into(),
            created(object),
        ]
    },
};

fn targets(object: &Value) -> String {
    let metrics = list(object, "/spec/metrics");
    if metrics.is_empty() {
        return "<none>".to_owned();
    }
    let current = list(object, "/status/currentMetrics");
    let texts: Vec<String> = metrics
        .iter()
        .enumerate()
        .filter(|(_, metric)| metric["type"] == "Resource")
        .map(|(i, metric)| {
            let resource = &metric["resource"];
            let name = str_at(resource, "/name");
            let value = |holder: &Value| match &holder["averageUtilization"] {
                Value::Null => shown(&holder["averageValue"], "<unknown>"),
                percent => format!("{percent}%"),
            };
            let now = current
                .get(i)
                .map_or_else(|| "<unknown>".to_owned(), |m| value(&m["resource"]["current"]));
            format!("{name}: {now}/{}", value(&resource["target"]))
        })
        .collect();
    texts.join(", ")
}

pub(super) static DISRUPTION_BUDGET: Printer = Printer {
    columns: &[
        NAME,
        text("Min Available"),
        text("Max Unavailable"),
        number("Allowed Disruptions"),
        AGE,
    ],
    cells: |object| {
        vec![
            name(object),
            shown(&object["spec"]["minAvailable"], "N/A").into(),
            shown(&object["spec"]["maxUnavailable"], "N/A").into(),
            count(object, "/status/disruptionsAllowed").into(),
            created(object),
        ]
    },
};
