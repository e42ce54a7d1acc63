use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};

use super::Version;

/// The result of an ADD, in the form of CNI 1.1 and without the version.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddResult {
    /// All interfaces made, on the host and in the sandbox.
    #[serde(
        default,
        deserialize_with = "or_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub interfaces: Vec<Interface>,
    /// All addresses given.
    #[serde(
        default,
        deserialize_with = "or_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub ips: Vec<Ip>,
    /// All routes made in the sandbox.
    #[serde(
        default,
        deserialize_with = "or_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub routes: Vec<Route>,
    /// How names are resolved.
    #[serde(default, deserialize_with = "or_default")]
    pub dns: Dns,
}

/// An interface of a result.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name, where it is.
    pub name: String,
    /// Its hardware address, as text: other plugins have other hardware.
    #[serde(
        default,
        deserialize_with = "or_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub mac: String,
    /// Its MTU in bytes. Since 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The sandbox it is in (for a container, the namespace's path); empty for
    /// the host.
    #[serde(
        default,
        deserialize_with = "or_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub sandbox: String,
    /// A socket that stands for it, for instance vhost-user. Since 1.1.0.
    #[serde(rename = "socketPath", default, skip_serializing_if = "Option::is_none")]
    pub socket_path: Option<String>,
    /// The PCI device it is. Since 1.1.0.
    #[serde(rename = "pciID", default, skip_serializing_if = "Option::is_none")]
    pub pci_id: Option<String>,
}

/// An address of a result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ip {
    /// The address and the length of its prefix.
    pub address: IpNet,
    /// The gateway of the address' subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// The index in [`AddResult::interfaces`] of the interface that has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<u32>,
}

/// A route of a result. All but the first two are since 1.1.0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Where to.
    pub dst: IpNet,
    /// By which gateway; without one, by that of the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// The MTU of the path in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The largest segment that TCP announces on it, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
    /// The metric: lower goes first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// The routing table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// The scope, as `rtm_scope` has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u32>,
}

/// How names are resolved, in configurations and in results.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// Name servers, most preferred first.
    #[serde(
        default,
        deserialize_with = "or_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(
        default,
        deserialize_with = "or_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub domain: String,
    /// Domains to search, most preferred first.
    #[serde(
        default,
        deserialize_with = "or_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub search: Vec<String>,
    /// Options for the resolver.
    #[serde(
        default,
        deserialize_with = "or_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub options: Vec<String>,
}

/// Why a result can't be given in the version asked for.
#[derive(Debug, thiserror::Error)]
pub enum ResultError {
    /// The JSON has not the layout of its version.
    #[error("{0}")]
    Layout(#[from] serde_json::Error),
    /// 0.1.0 and 0.2.0 have room for one address of each family, and need one.
    #[error("a result without an address can't be told in CNI version {0}")]
    NoAddress(Version),
}

/// The layout of 0.1.0 and 0.2.0.
#[derive(Serialize, Deserialize)]
struct Legacy {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ip4: Option<LegacyIp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ip6: Option<LegacyIp>,
    #[serde(default, deserialize_with = "or_default")]
    dns: Dns,
}

#[derive(Serialize, Deserialize)]
struct LegacyIp {
    ip: IpNet,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gateway: Option<IpAddr>,
    #[serde(
        default,
        deserialize_with = "or_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    routes: Vec<Route>,
}

// === impl AddResult ===

impl AddResult {
    /// Reads a result laid out as in `version`. A `cniVersion` in it is ignored.
    ///
    /// # Errors
    /// [`ResultError::Layout`]
    pub fn from_json(value: Value, version: Version) -> Result<Self, ResultError> {
        if version > Version::V0_2_0 {
            // The `version` of an address (0.3.0 to 0.4.0) says what the address says.
            return Ok(serde_json::from_value(value)?);
        }
        let legacy: Legacy = serde_json::from_value(value)?;
        let mut result = Self {
            dns: legacy.dns,
            ..Self::default()
        };
        for family in [legacy.ip4, legacy.ip6].into_iter().flatten() {
            result.ips.push(Ip {
                address: family.ip,
                gateway: family.gateway,
                interface: None,
            });
            result.routes.extend(family.routes);
        }
        Ok(result)
    }

    /// The result laid out as in `version`, with `cniVersion`. What the version
    /// has no place for is left out.
    ///
    /// # Errors
    /// [`ResultError::NoAddress`]
    pub fn to_json(&self, version: Version) -> Result<Value, ResultError> {
        let mut result = match version {
            Version::V0_1_0 | Version::V0_2_0 => serde_json::to_value(self.to_legacy(version)?)?,
            Version::V0_3_0 | Version::V0_3_1 | Version::V0_4_0 => self.to_1_0_with_families()?,
            Version::V1_0_0 => serde_json::to_value(self.without_1_1_fields())?,
            Version::V1_1_0 => serde_json::to_value(self)?,
        };
        result["cniVersion"] = json!(version.as_str());
        Ok(result)
    }

    /// Puts this result behind `previous`, the one of the plugins before this
    /// one in a chain: theirs stays as it is, with its indices.
    #[must_use]
    pub fn after(self, previous: Self) -> Self {
        let shift = u32::try_from(previous.interfaces.len()).unwrap_or(u32::MAX);
        let mut merged = previous;
        merged.interfaces.extend(self.interfaces);
        merged.ips.extend(self.ips.into_iter().map(|ip| Ip {
            interface: ip.interface.map(|index| index.saturating_add(shift)),
            ..ip
        }));
        merged.routes.extend(self.routes);
        if merged.dns == Dns::default() {
            merged.dns = self.dns;
        }
        merged
    }

    /// The addresses that the interface of this name inside the sandbox has.
    pub fn addresses_of(&self, if_name: &str) -> impl Iterator<Item = IpNet> {
        self.ips.iter().filter_map(move |ip| {
            let interface = self.interfaces.get(usize::try_from(ip.interface?).ok()?)?;
            (interface.name == if_name && !interface.sandbox.is_empty()).then_some(ip.address)
        })
    }

    fn without_1_1_fields(&self) -> Self {
        let mut result = self.clone();
        for interface in &mut result.interfaces {
            *interface = Interface {
                name: std::mem::take(&mut interface.name),
                mac: std::mem::take(&mut interface.mac),
                sandbox: std::mem::take(&mut interface.sandbox),
                ..Interface::default()
            };
        }
        for route in &mut result.routes {
            *route = route.without_1_1_fields();
        }
        result
    }

    fn to_1_0_with_families(&self) -> Result<Value, ResultError> {
        let mut result = serde_json::to_value(self.without_1_1_fields())?;
        let ips = result.get_mut("ips").and_then(Value::as_array_mut);
        for (json, ip) in ips.into_iter().flatten().zip(&self.ips) {
            json["version"] = json!(if ip.address.addr().is_ipv4() { "4" } else { "6" });
        }
        Ok(result)
    }

    fn to_legacy(&self, version: Version) -> Result<Legacy, ResultError> {
        let family = |is_ipv4: bool| {
            let ip = self
                .ips
                .iter()
                .find(|ip| ip.address.addr().is_ipv4() == is_ipv4)?;
            let routes = self
                .routes
                .iter()
                .filter(|route| route.dst.addr().is_ipv4() == is_ipv4);
            Some(LegacyIp {
                ip: ip.address,
                gateway: ip.gateway,
                routes: routes.map(Route::without_1_1_fields).collect(),
            })
        };
        let (ip4, ip6) = (family(true), family(false));
        if ip4.is_none() && ip6.is_none() {
            return Err(ResultError::NoAddress(version));
        }
        Ok(Legacy {
            ip4,
            ip6,
            dns: self.dns.clone(),
        })
    }
}

// === impl Route ===

impl Route {
    /// A route of which only these two are known.
    pub fn new(dst: IpNet, gw: Option<IpAddr>) -> Self {
        Self {
            dst,
            gw,
            mtu: None,
            advmss: None,
            priority: None,
            table: None,
            scope: None,
        }
    }

    fn without_1_1_fields(&self) -> Self {
        Self::new(self.dst, self.gw)
    }
}

/// `null` for an absent value: Go's encoder writes it for empty slices.
pub(super) fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
