use std::collections::BTreeMap;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Up to some hundred security identities with the labels they stand for.
///
/// All slices together are the list of all identities: what an agent has to
/// know to judge a packet by the identity it carries. Written by the operator
/// alone.
#[derive(CustomResource, JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "weft.dev",
    version = "v1alpha1",
    kind = "IdentitySlice",
    plural = "identityslices",
    shortname = "isl",
    category = "weft",
    derive = "PartialEq",
    no_spec,
    doc = "An IdentitySlice lists security identities with the labels they stand for. All slices together are what every agent knows of the pods of other nodes.",
    printcolumn(
        name = "First identity",
        type_ = "integer",
        json_path = ".identities[0].id",
        description = "The first of the identities listed"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
pub struct IdentitySliceSpec {
    /// The identities, in no order that means anything. An identity is in one
    /// slice only.
    #[serde(default)]
    #[schemars(schema_with = "crate::schema::identities")]
    pub identities: Vec<IdentityEntry>,
}

/// One set of labels and its number.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IdentityEntry {
    /// The number packets carry, 1 to 8388607 (23 bits of the VXLAN header).
    #[schemars(range(min = 1, max = 8_388_607))]
    pub id: u32,
    /// The labels a pod has to have, all of them and no others, of those that
    /// count for policy.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}
