//! Volumes, claims and their classes.

use serde_json::Value;

use super::cells::{created, list, name, str_at};
use super::{AGE, NAME, Printer, text, wide};

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
