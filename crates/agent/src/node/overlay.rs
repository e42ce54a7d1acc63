//! The overlay device.

use super::{NodeNet, OVERLAY, OWNER, kernel, no_ipv6, overlay_mac};
use crate::desired::Desired;
use crate::pass::Pass;
use weft_kernel::rtnl::{Address, Link, VxlanSpec};
use weft_kernel::sysctl::{self, Key};
use weft_model::audit::FindingKind;
use weft_model::{UserError, codes};

// === impl NodeNet ===

impl NodeNet {
    /// The overlay device; `None` where it is missing and this pass only looks.
    pub(super) fn overlay(
        &mut self,
        desired: &Desired,
        mtu: u32,
        pass: &mut Pass,
    ) -> Result<Option<Link>, UserError> {
        let port = self.settings.vxlan_port;
        let netlink = |error: weft_kernel::Error| kernel(codes::NETLINK, &error);
        let found = self.rtnl.link(OVERLAY).map_err(netlink)?;
        let wrong = match &found {
            None => Some(format!("interface {OVERLAY} is missing")),
            Some(link) if link.kind.as_deref() != Some("vxlan") => {
                let kind = link.kind.as_deref().unwrap_or("hardware");
                let message = format!("interface {OVERLAY} exists and is of kind {kind}");
                return Err(UserError::new(
                    codes::INTERFACE_CONFLICT,
                    message,
                    format!("ip -d link show {OVERLAY}"),
                ));
            }
            Some(link) => (link.vxlan_external_port != Some(port)).then(|| {
                format!("interface {OVERLAY} is not a VXLAN device of mode external at port {port}")
            }),
        };
        if let Some(wrong) = wrong {
            if !pass.differs(FindingKind::Link, OWNER, wrong) {
                return Ok(None);
            }
            if found.is_some() {
                self.rtnl.delete_link(OVERLAY).map_err(netlink)?;
            }
            self.rtnl
                .create_vxlan(&VxlanSpec {
                    name: OVERLAY,
                    mac: overlay_mac(),
                    mtu,
                    port,
                })
                .map_err(netlink)?;
        }
        let overlay = self.rtnl.get_link(OVERLAY).map_err(netlink)?;
        self.shape(&overlay, desired, mtu, pass).map_err(netlink)?;
        let forward = Key::new("net/ipv4/ip_forward").map_err(netlink)?;
        if sysctl::read_current(&forward).map_err(netlink)? != "1"
            && pass.differs(FindingKind::Sysctl, OWNER, format!("{forward} is not 1"))
        {
            self.settings.originals.set(&forward, "1")?;
        }
        Ok(Some(overlay))
    }

    /// What the overlay device has to be like, but for being up.
    fn shape(
        &mut self,
        overlay: &Link,
        desired: &Desired,
        mtu: u32,
        pass: &mut Pass,
    ) -> Result<(), weft_kernel::Error> {
        let index = overlay.index;
        let mac = overlay_mac();
        if overlay.mac != Some(mac)
            && pass.differs(
                FindingKind::Link,
                OWNER,
                format!("{OVERLAY} has another Ethernet address than {mac}"),
            )
        {
            self.rtnl.set_mac(index, mac)?;
        }
        if overlay.mtu != mtu
            && pass.differs(
                FindingKind::Link,
                OWNER,
                format!("MTU of {OVERLAY} is {} and should be {mtu}", overlay.mtu),
            )
        {
            self.rtnl.set_mtu(index, mtu)?;
        }
        pass.sysctl(OWNER, &Key::ipv4_conf(OVERLAY, "rp_filter")?, "2")?;
        pass.sysctl(OWNER, &no_ipv6(OVERLAY)?, "1")?;
        // A masquerade towards the overlay picks the address of this device, which is then the node's.
        let address = Address::host(index, desired.address);
        let held = self.rtnl.addresses(Some(index))?;
        if !held.contains(&address)
            && pass.differs(
                FindingKind::Address,
                OWNER,
                format!("{OVERLAY} lacks the node's address {}", desired.address),
            )
        {
            self.rtnl.replace_address(&address)?;
        }
        for other in held.iter().filter(|held| held.net != address.net) {
            if pass.differs(
                FindingKind::Address,
                OWNER,
                format!("{OVERLAY} has the address {} that is not the node's", other.net),
            ) {
                self.rtnl.delete_address(other)?;
            }
        }
        Ok(())
    }
}
