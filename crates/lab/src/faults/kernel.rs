//! What others do to a node's kernel and disk.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};

use weft_kernel::NetNs;
use weft_kernel::bpf::{Datapath, Options};
use weft_kernel::nft::Nft;
use weft_kernel::rtnl::{RouteFilter, Rtnl};
use weft_kernel::sysctl::{self, Key};
use weft_kernel::target::Target;
use weft_model::UserError;

use crate::daemon::{Daemon, RunningMachine, blocking};
use crate::machine::{UPLINK, kernel_error};
use crate::state::unusable;
use crate::vnet::{self, VnetNames};

/// The agent's table of nftables.
const WEFT_TABLE: &str = "weft";

/// The agent's overlay device.
const OVERLAY: &str = "weft0";

/// Takes up what room a disk has left.
const FILL: &str = "fill";

// === impl Daemon ===

impl Daemon {
    /// Cuts a node off at the switch's end of its link, or connects it again.
    pub(super) async fn set_port_up(&self, machine: &RunningMachine, up: bool) -> Result<(), UserError> {
        self.on_switch(machine, move |switch, port| {
            Rtnl::open_in(switch)?.set_up(port, up).map(drop)
        })
        .await
    }

    /// Loses that share of the packets a node sends, as they arrive at the switch.
    pub(super) async fn set_loss(&self, machine: &RunningMachine, percent: u8) -> Result<(), UserError> {
        self.on_switch(machine, move |switch, port| {
            Nft::open_in(switch)?.lose(port, percent)
        })
        .await
    }

    /// Sets the MTU of both ends of a node's link, as a smaller network underneath would.
    pub(super) async fn set_mtu(&self, machine: &RunningMachine, mtu: u32) -> Result<(), UserError> {
        self.on_switch(machine, move |switch, port| {
            Rtnl::open_in(switch)?.set_mtu(port, mtu).map(drop)
        })
        .await?;
        on(machine, move |node| {
            Rtnl::open_in(node)?.set_mtu(UPLINK, mtu).map(|_| String::new())
        })
        .await
        .map(drop)
    }

    /// Changes something at the switch's end of a node's link.
    async fn on_switch(
        &self,
        machine: &RunningMachine,
        change: impl FnOnce(&NetNs, &str) -> weft_kernel::Result<()> + Send + 'static,
    ) -> Result<(), UserError> {
        let switch = VnetNames::of(&self.state().config.vnet).switch;
        let port = vnet::port_name(machine.handle.address.get());
        let node = machine.handle.name.clone();
        blocking(move || {
            NetNs::named(&switch)
                .and_then(|switch| change(&switch, &port))
                .map_err(|error| fault_error(&node, &error))
        })
        .await
    }
}

/// Does something in a node's namespace; returns what it says of it.
pub(super) async fn on(
    machine: &RunningMachine,
    change: impl FnOnce(&NetNs) -> weft_kernel::Result<String> + Send + 'static,
) -> Result<String, UserError> {
    let (netns, node) = (machine.handle.netns_name.clone(), machine.handle.name.clone());
    blocking(move || {
        NetNs::named(&netns)
            .and_then(|netns| change(&netns))
            .map_err(|error| fault_error(&node, &error))
    })
    .await
}

pub(super) fn flush_nft(node: &NetNs) -> weft_kernel::Result<String> {
    Ok(if Nft::open_in(node)?.delete_table(WEFT_TABLE)? {
        "nftables table removed"
    } else {
        "there was no nftables table"
    }
    .to_owned())
}

pub(super) fn delete_routes(node: &NetNs) -> weft_kernel::Result<String> {
    let mut rtnl = Rtnl::open_in(node)?;
    let mut deleted = 0;
    for route in rtnl.routes(RouteFilter::own())? {
        deleted += u32::from(rtnl.delete_route(&route)?);
    }
    Ok(format!("{deleted} routes removed"))
}

pub(super) fn delete_overlay(node: &NetNs) -> weft_kernel::Result<String> {
    Ok(if Rtnl::open_in(node)?.delete_link(OVERLAY)? {
        format!("{OVERLAY} removed")
    } else {
        format!("there was no {OVERLAY}")
    })
}

pub(super) fn change_parameters(node: &NetNs) -> weft_kernel::Result<String> {
    let wanted = [
        (Key::new("net/ipv4/ip_forward")?, "0".to_owned()),
        (Key::ipv4_conf(OVERLAY, "rp_filter")?, "1".to_owned()),
    ];
    sysctl::write(node, &wanted)?;
    let said: Vec<String> = wanted
        .iter()
        .map(|(key, value)| format!("{key} = {value}"))
        .collect();
    Ok(said.join(", "))
}

/// Removes the first entry of each map.
pub(super) async fn delete_map_entries(machine: &RunningMachine) -> Result<String, UserError> {
    let (pins, node) = (machine.machine.bpf_dir(), machine.handle.name.clone());
    blocking(move || {
        let remove = || -> weft_kernel::Result<String> {
            let mut datapath = Datapath::load(&Options::new(&pins))?;
            let removed = [
                remove_first(&mut datapath.prefixes())?,
                remove_first(&mut datapath.blocks())?,
                remove_first(&mut datapath.nodes())?,
                remove_first(&mut datapath.endpoints())?,
            ];
            let removed: Vec<String> = removed.into_iter().flatten().collect();
            Ok(format!("map entries removed: {}", removed.join(", ")))
        };
        remove().map_err(|error| fault_error(&node, &error))
    })
    .await
}

fn remove_first<T: Target>(map: &mut T) -> weft_kernel::Result<Option<String>> {
    let Some(key) = map.list()?.into_keys().next() else {
        return Ok(None);
    };
    map.remove(&key)?;
    Ok(Some(format!("{key:?}")))
}

/// Writes to the disk until there is no room.
pub(super) async fn fill_disk(machine: &RunningMachine) -> Result<String, UserError> {
    let path = machine.machine.state_dir().join(FILL);
    blocking(move || {
        let fill = || -> io::Result<u64> {
            let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
            let chunk = vec![0; 4096];
            loop {
                match file.write(&chunk) {
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                        return Ok(file.metadata()?.len());
                    }
                    Err(error) => return Err(error),
                }
            }
        };
        let filled = fill().map_err(|error| unusable("fill", &path, &error))?;
        Ok(format!("disk is full, by a file of {filled} bytes"))
    })
    .await
}

pub(super) async fn free_disk(machine: &RunningMachine) -> Result<(), UserError> {
    let path = machine.machine.state_dir().join(FILL);
    blocking(move || match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(unusable("remove", &path, &error)),
        _ => Ok(()),
    })
    .await
}

pub(super) fn fault_error(node: &str, error: &weft_kernel::Error) -> UserError {
    kernel_error(&format!("fault on {node}"), error, "weft lab list")
}
