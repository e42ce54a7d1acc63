//! Cluster addresses and node ports of Services.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};

use crate::core::Core;
use crate::error::{ApiError, FieldError};
use crate::registry::Resource;
use crate::store::{Range, RevisionError};

/// Node ports of the real server's default `--service-node-port-range`.
const NODE_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;

/// What Services hold.
#[derive(Debug)]
pub(crate) struct Pools {
    network: Ipv4Addr,
    length: u8,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    addresses: BTreeSet<Ipv4Addr>,
    ports: BTreeSet<u16>,
}

/// What a write took from the pools; given back unless kept.
#[derive(Debug, Default)]
#[must_use = "dropping it gives the addresses back"]
pub(crate) struct Lease {
    taken: Option<Arc<Mutex<Taken>>>,
    addresses: Vec<Ipv4Addr>,
    ports: Vec<u16>,
    /// What the object no longer has, given back when the write is kept.
    freed: (Vec<Ipv4Addr>, Vec<u16>),
}

// === impl Pools ===

impl Pools {
    pub(crate) fn new((network, length): (Ipv4Addr, u8)) -> Self {
        Self {
            network,
            length,
            taken: Arc::default(),
        }
    }

    fn contains(&self, address: Ipv4Addr) -> bool {
        let mask = u32::MAX << (32 - self.length);
        address.to_bits() & mask == self.network.to_bits()
    }

    /// Usable addresses lie between the network address and the last one.
    fn free_address(&self, taken: &Taken) -> Option<Ipv4Addr> {
        let first = self.network.to_bits() + 1;
        let last = self.network.to_bits() | (u32::MAX >> self.length);
        // The lower part is left for addresses that are asked for, as the real allocator does.
        let size = last - first;
        let reserved = (size / 16).clamp(16, 256).min(size);
        let upper = first + reserved..last;
        let lower = first..first + reserved;
        upper
            .chain(lower)
            .map(Ipv4Addr::from_bits)
            .find(|address| !taken.addresses.contains(address))
    }

    fn release(&self, service: &Value) {
        let (addresses, ports) = held(service);
        give_back(&self.taken, &addresses, &ports);
    }

    /// Forgets what was taken but for what these Services hold.
    fn reset(&self, services: impl Iterator<Item = Value>) {
        let mut taken = Taken::default();
        for service in services {
            let (addresses, ports) = held(&service);
            taken.addresses.extend(addresses);
            taken.ports.extend(ports);
        }
        *self.taken.lock().unwrap_or_else(PoisonError::into_inner) = taken;
    }
}

/// The addresses and node ports a Service has.
fn held(service: &Value) -> (Vec<Ipv4Addr>, Vec<u16>) {
    let spec = &service["spec"];
    let addresses = spec["clusterIP"].as_str().and_then(|text| text.parse().ok());
    let ports = spec["ports"].as_array().into_iter().flatten();
    let ports = ports.filter_map(|port| u16::try_from(port["nodePort"].as_u64()?).ok());
    let check = spec["healthCheckNodePort"]
        .as_u64()
        .and_then(|port| u16::try_from(port).ok());
    (
        addresses.into_iter().collect(),
        ports.chain(check).filter(|port| *port != 0).collect(),
    )
}

fn give_back(taken: &Mutex<Taken>, addresses: &[Ipv4Addr], ports: &[u16]) {
    let mut taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
    taken.addresses.retain(|address| !addresses.contains(address));
    taken.ports.retain(|port| !ports.contains(port));
}

// === impl Lease ===

impl Lease {
    /// The write happened.
    pub(crate) fn keep(mut self) {
        if let Some(taken) = self.taken.take() {
            give_back(&taken, &self.freed.0, &self.freed.1);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(taken) = self.taken.take() {
            give_back(&taken, &self.addresses, &self.ports);
        }
    }
}

// === impl Core ===

impl Core {
    /// Gives a Service the addresses and node ports it needs; other objects need none.
    pub(crate) fn allocate(
        &self,
        resource: &Resource,
        object: &mut Value,
        old: Option<&Value>,
    ) -> Result<Lease, ApiError> {
        if !resource.is("", "services") || !object["spec"].is_object() {
            return Ok(Lease::default());
        }
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let mut lease = Lease::default();
        lease.taken = Some(Arc::clone(&self.pools.taken));
        let before = old.map(held).unwrap_or_default();
        let spec = &mut object["spec"];
        let invalid = |problem: FieldError| ApiError::invalid("", "Service", &name, &[problem]);
        keep_from(spec, old);
        let kind = spec["type"].as_str().unwrap_or_default().to_owned();
        self.allocate_address(spec, &kind, &before.0, &mut lease)
            .map_err(invalid)?;
        self.allocate_ports(spec, &kind, &before.1, &mut lease)
            .map_err(invalid)?;
        let now = held(object);
        lease.freed = (
            before
                .0
                .into_iter()
                .filter(|address| !now.0.contains(address))
                .collect(),
            before
                .1
                .into_iter()
                .filter(|port| !now.1.contains(port))
                .collect(),
        );
        Ok(lease)
    }

    fn allocate_address(
        &self,
        spec: &mut Value,
        kind: &str,
        before: &[Ipv4Addr],
        lease: &mut Lease,
    ) -> Result<(), FieldError> {
        if !matches!(kind, "ClusterIP" | "NodePort" | "LoadBalancer") {
            if let Some(fields) = spec.as_object_mut() {
                for field in [
                    "clusterIP",
                    "clusterIPs",
                    "ipFamilies",
                    "ipFamilyPolicy",
                    "internalTrafficPolicy",
                ] {
                    if kind == "ExternalName"
                        && (field != "clusterIP" || fields.get(field).is_some_and(|v| v == ""))
                    {
                        fields.remove(field);
                    }
                }
            }
            return Ok(());
        }
        let wanted = spec
            .get("clusterIP")
            .and_then(Value::as_str)
            .filter(|text| !text.is_empty())
            .or_else(|| spec.pointer("/clusterIPs/0").and_then(Value::as_str))
            .map(str::to_owned);
        let address = match wanted.as_deref() {
            Some("None") => {
                spec["clusterIP"] = "None".into();
                spec["clusterIPs"] = json!(["None"]);
                return Ok(());
            }
            Some(text) => {
                // What isn't an address is for the validation to say.
                let Ok(address) = text.parse::<Ipv4Addr>() else {
                    return Ok(());
                };
                if !before.contains(&address) {
                    self.take(address, lease)?;
                }
                address
            }
            None => {
                let mut taken = self.pools.taken.lock().unwrap_or_else(PoisonError::into_inner);
                let Some(address) = self.pools.free_address(&taken) else {
                    return Err(FieldError::invalid(
                        "spec.clusterIPs",
                        &json!([]),
                        "failed to allocate a serviceIP: range is full",
                    ));
                };
                taken.addresses.insert(address);
                lease.addresses.push(address);
                address
            }
        };
        spec["clusterIP"] = address.to_string().into();
        spec["clusterIPs"] = json!([address.to_string()]);
        Ok(())
    }

    fn take(&self, address: Ipv4Addr, lease: &mut Lease) -> Result<(), FieldError> {
        let refuse = |why: String| {
            let detail = format!("failed to allocate IP {address}: {why}");
            FieldError::invalid("spec.clusterIPs", &json!([address.to_string()]), detail)
        };
        if !self.pools.contains(address) {
            return Err(refuse(format!(
                "the provided IP ({address}) is not in the valid range. The range of valid IPs is {}/{}",
                self.pools.network, self.pools.length
            )));
        }
        let mut taken = self.pools.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if !taken.addresses.insert(address) {
            return Err(refuse("provided IP is already allocated".to_owned()));
        }
        lease.addresses.push(address);
        Ok(())
    }

    fn allocate_ports(
        &self,
        spec: &mut Value,
        kind: &str,
        before: &[u16],
        lease: &mut Lease,
    ) -> Result<(), FieldError> {
        let wants =
            kind == "NodePort" || (kind == "LoadBalancer" && spec["allocateLoadBalancerNodePorts"] != false);
        let mut taken = self.pools.taken.lock().unwrap_or_else(PoisonError::into_inner);
        // One number may serve several protocols of the same Service.
        let mut own: Vec<u16> = before.to_vec();
        let count = spec["ports"].as_array().map_or(0, Vec::len);
        for i in 0..count {
            let port = &mut spec["ports"][i];
            match port
                .get("nodePort")
                .and_then(Value::as_u64)
                .filter(|number| *number != 0)
            {
                Some(_) if !matches!(kind, "NodePort" | "LoadBalancer") => {}
                Some(number) => {
                    let path = format!("spec.ports[{i}].nodePort");
                    let shown = Value::from(number);
                    let number = u16::try_from(number)
                        .ok()
                        .filter(|number| NODE_PORTS.contains(number));
                    let Some(number) = number else {
                        let why = "provided port is not in the valid range. The range of valid ports is 30000-32767";
                        return Err(FieldError::invalid(&path, &shown, why));
                    };
                    if own.contains(&number) {
                        continue;
                    }
                    if !taken.ports.insert(number) {
                        return Err(FieldError::invalid(
                            &path,
                            &shown,
                            "provided port is already allocated",
                        ));
                    }
                    lease.ports.push(number);
                    own.push(number);
                }
                None if wants => {
                    let Some(number) = NODE_PORTS.clone().find(|number| !taken.ports.contains(number)) else {
                        return Err(FieldError::invalid(
                            &format!("spec.ports[{i}].nodePort"),
                            &Value::from(0),
                            "failed to allocate a nodePort: range is full",
                        ));
                    };
                    taken.ports.insert(number);
                    lease.ports.push(number);
                    own.push(number);
                    port["nodePort"] = number.into();
                }
                None => {}
            }
        }
        Ok(())
    }

    pub(crate) fn release(&self, service: &Value) {
        self.pools.release(service);
    }

    /// Restores an earlier revision, and with it what its Services hold.
    pub(crate) fn rewind(&self, revision: u64) -> Result<(), RevisionError> {
        self.store.rewind(revision)?;
        let catalog = self.registry.catalog();
        if let Some(services) = catalog.find("", "v1", "services") {
            let page = self.store.list(&services.shelf, &Range::default(), |_| true)?;
            self.pools.reset(page.items.iter().map(|stored| stored.value()));
        }
        Ok(())
    }
}

/// An update that leaves out what was allocated keeps it.
fn keep_from(spec: &mut Value, old: Option<&Value>) {
    let Some(old) = old.map(|old| &old["spec"]) else {
        return;
    };
    let needs_address = spec["type"] != "ExternalName";
    if needs_address && old["type"] != "ExternalName" && spec.get("clusterIP").is_none_or(|ip| ip == "") {
        for field in ["clusterIP", "clusterIPs"] {
            if let Some(value) = old.get(field) {
                spec[field] = value.clone();
            }
        }
    }
    let needs_ports = |spec: &Value| matches!(spec["type"].as_str(), Some("NodePort" | "LoadBalancer"));
    if !needs_ports(old) {
        return;
    }
    if !needs_ports(spec) {
        // Leaving the type gives the ports up, where they were carried over unchanged.
        for port in spec["ports"].as_array_mut().into_iter().flatten() {
            let carried = old["ports"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|before| before["nodePort"] == port["nodePort"]);
            if carried && let Some(port) = port.as_object_mut() {
                port.remove("nodePort");
            }
        }
        return;
    }
    let before = old["ports"].as_array().cloned().unwrap_or_default();
    for port in spec["ports"].as_array_mut().into_iter().flatten() {
        if port.get("nodePort").is_some_and(|number| *number != 0) {
            continue;
        }
        let same = |other: &&Value| other["port"] == port["port"] && other["protocol"] == port["protocol"];
        if let Some(number) = before.iter().find(same).and_then(|other| other.get("nodePort")) {
            port["nodePort"] = number.clone();
        }
    }
}
