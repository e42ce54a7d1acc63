//! The objects of one moment.

use std::fmt::Debug;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::ListParams;
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use weft_api::{GROUP, NodeNetwork, NodeSlice, PodPool};
use weft_model::{UserError, codes};

use weft_api::root_cause;

/// Objects asked for at a time.
const PAGE: u32 = 500;

/// All objects that the pod network of a cluster consists of.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The pools.
    pub pools: Vec<PodPool>,
    /// The nodes' networks.
    pub networks: Vec<NodeNetwork>,
    /// What every agent knows of the other nodes.
    pub slices: Vec<NodeSlice>,
    /// The Nodes.
    pub nodes: Vec<Node>,
}

// === impl Snapshot ===

impl Snapshot {
    /// Reads the objects. They are of almost the same moment.
    ///
    /// # Errors
    /// The API can't be reached, does not know Weft's types, or refuses.
    pub async fn read(client: &Client) -> Result<Self, UserError> {
        let (pools, networks, slices, nodes) = tokio::try_join!(
            all(Api::all(client.clone()), None),
            all(Api::all(client.clone()), None),
            all(Api::all(client.clone()), None),
            all(Api::all(client.clone()), None),
        )?;
        Ok(Self {
            pools,
            networks,
            slices,
            nodes,
        })
    }
}

/// All pods of the cluster.
///
/// # Errors
/// The API can't be reached, or refuses.
pub async fn pods(client: &Client) -> Result<Vec<Pod>, UserError> {
    all(Api::all(client.clone()), None).await
}

/// The pods whose status has this address, those that have ended too.
///
/// # Errors
/// The API can't be reached, or refuses.
pub async fn pods_with(client: &Client, address: std::net::Ipv4Addr) -> Result<Vec<Pod>, UserError> {
    let selector = format!("status.podIP={address}");
    all(Api::all(client.clone()), Some(&selector)).await
}

async fn all<K>(api: Api<K>, fields: Option<&str>) -> Result<Vec<K>, UserError>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let mut params = ListParams::default().limit(PAGE);
    if let Some(fields) = fields {
        params = params.fields(fields);
    }
    let mut items = Vec::new();
    loop {
        let page = api.list(&params).await.map_err(|error| refused::<K>(&error))?;
        items.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(items),
        }
    }
}

fn refused<K: Resource<DynamicType = ()>>(error: &kube::Error) -> UserError {
    let kinds = K::plural(&()).into_owned();
    let group = K::group(&());
    match error {
        kube::Error::Api(status) if status.code == 403 => UserError::new(
            codes::API_FORBIDDEN,
            format!("list {kinds}: {}", status.message),
            format!("kubectl auth can-i list {kinds}"),
        ),
        kube::Error::Api(status) if status.code == 404 && group == GROUP => UserError::new(
            codes::CRD_MISSING,
            format!("the API knows no {kinds}.{group}"),
            format!("kubectl api-resources --api-group={group}"),
        ),
        kube::Error::Api(status) => UserError::new(
            codes::API_REJECTED,
            format!("list {kinds}: {} ({})", status.message, status.code),
            format!("kubectl get {kinds}"),
        ),
        error => UserError::new(
            codes::API_UNREACHABLE,
            format!("list {kinds}: {}", root_cause(error)),
            "kubectl cluster-info",
        ),
    }
}
