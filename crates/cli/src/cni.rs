//! `weft cni`: the plugin on a node's disk.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use weft_cni::install::{
    CONF_NAME, ConfDir, ConfName, LOOPBACK, PLUGIN, install_loopback, install_plugin, remove_plugin,
};
use weft_model::{UserError, codes};

use crate::{OK, out};

/// Put the CNI plugin where the container runtime of a node finds it, or take it away
#[derive(Debug, Subcommand)]
pub(crate) enum CniCommand {
    /// Put the plugin in place; the agent adds the network configuration when the node can serve pods
    ///
    /// Fails without touching anything where the configuration of another plugin sorts before Weft's. Idempotent.
    Install(InstallArgs),
    /// Remove Weft's network configuration, then the plugin; pods that are on Weft can't be deleted after that
    Uninstall(Directories),
}

#[derive(Debug, Args)]
pub(crate) struct InstallArgs {
    #[command(flatten)]
    directories: Directories,

    /// The plugin to put in place; weft-cni beside this program where absent
    #[arg(long, value_name = "FILE")]
    plugin: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Directories {
    /// Directory of the runtime's plugins
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    bin_dir: PathBuf,

    /// Directory of the runtime's network configurations
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    conf_dir: PathBuf,

    /// Name of Weft's network configuration
    #[arg(long, value_name = "NAME", default_value = CONF_NAME)]
    conf_name: ConfName,
}

/// Carries the command out.
pub(crate) fn run(command: &CniCommand) -> Result<u8, UserError> {
    match command {
        CniCommand::Install(args) => install(args),
        CniCommand::Uninstall(directories) => uninstall(directories),
    }
}

fn install(args: &InstallArgs) -> Result<u8, UserError> {
    let directories = &args.directories;
    let conf = directories.conf();
    if let Some(other) = conf.shadowed_by()? {
        return Err(conf.conflict(&other));
    }
    let source = match &args.plugin {
        Some(path) => path.clone(),
        None => beside_this_program()?,
    };
    let target = directories.bin_dir.join(PLUGIN);
    if install_plugin(&source, &directories.bin_dir)? {
        out::line(format!("{} installed", target.display()));
    } else {
        out::line(format!("{} is in place already", target.display()));
    }
    if install_loopback(&source, &directories.bin_dir)? {
        let target = directories.bin_dir.join(LOOPBACK);
        out::line(format!("{} installed, for there was none", target.display()));
    }
    Ok(OK)
}

fn uninstall(directories: &Directories) -> Result<u8, UserError> {
    for path in directories.conf().remove()? {
        out::line(format!("{} removed", path.display()));
    }
    let plugin = directories.bin_dir.join(PLUGIN);
    if remove_plugin(&directories.bin_dir)? {
        out::line(format!("{} removed", plugin.display()));
    } else {
        out::line(format!("{} is not there", plugin.display()));
    }
    Ok(OK)
}

fn beside_this_program() -> Result<PathBuf, UserError> {
    let program = std::env::current_exe().map_err(|error| {
        UserError::new(
            codes::CNI_INSTALL,
            format!("find the running program: {error}"),
            "name the plugin with --plugin",
        )
    })?;
    Ok(program.with_file_name(PLUGIN))
}

// === impl Directories ===

impl Directories {
    fn conf(&self) -> ConfDir {
        ConfDir::new(&self.conf_dir, self.conf_name.clone())
    }
}
