//! Pods and hashes from pod templates.

use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use sha2::{Digest, Sha256};

use super::facts::Labels;

/// Letters and digits without vowels and look-alikes, as Kubernetes uses them in generated names.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
const HASH_LENGTH: usize = 10;

/// Label whose value tells the ReplicaSets of a Deployment, and their pods, apart.
pub const POD_TEMPLATE_HASH: &str = "pod-template-hash";
/// Label whose value tells the pods of a StatefulSet or DaemonSet before and after an update apart.
pub const CONTROLLER_REVISION_HASH: &str = "controller-revision-hash";

/// A pod as a template describes it, owned by `owner`, with `labels` beside those of the template.
///
/// Its name is `name`, or, where that is `None`, the server makes one beginning with `prefix`.
pub fn pod(
    template: &PodTemplateSpec,
    owner: OwnerReference,
    prefix: &str,
    name: Option<String>,
    labels: Labels,
) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    let mut all = meta.labels.unwrap_or_default();
    all.extend(labels);
    Pod {
        metadata: ObjectMeta {
            generate_name: name.is_none().then(|| prefix.to_owned()),
            name,
            labels: Some(all),
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        ..Pod::default()
    }
}

/// A hash of a template: equal for equal templates, whatever made them. The hash label itself doesn't count.
pub fn hash(template: &PodTemplateSpec) -> String {
    let mut template = template.clone();
    if let Some(labels) = template.metadata.as_mut().and_then(|meta| meta.labels.as_mut()) {
        labels.remove(POD_TEMPLATE_HASH);
    }
    // Serialized maps are sorted, so equal templates have equal text.
    short_hash(
        serde_json::to_string(&template).unwrap_or_default().as_bytes(),
        HASH_LENGTH,
    )
}

/// A hash of `length` characters that may stand in a name.
pub fn short_hash(bytes: &[u8], length: usize) -> String {
    Sha256::digest(bytes)
        .iter()
        .take(length)
        .map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()]))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn template(label: &str, image: &str) -> PodTemplateSpec {
        serde_json::from_value(json!({
            "metadata": {"labels": {"app": "web", "pod-template-hash": label}},
            "spec": {"containers": [{"name": "c", "image": image}]},
        }))
        .unwrap()
    }

    #[test]
    fn only_what_the_template_says_counts() {
        assert_eq!(hash(&template("x", "nginx")), hash(&template("y", "nginx")));
        assert_ne!(hash(&template("x", "nginx")), hash(&template("x", "nginx:2")));
        assert_eq!(hash(&template("x", "nginx")).len(), HASH_LENGTH);
    }
}
