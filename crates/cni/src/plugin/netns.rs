use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;
use weft_model::{UserError, codes};

use crate::protocol::Netns;
use crate::spec::{Failure, code};

/// `NSFS_MAGIC` of `linux/magic.h`.
const NSFS: rustix::fs::FsWord = 0x6e73_6673;

const OWN: &str = "/proc/self/ns/net";

/// Opens the namespace that `CNI_NETNS` names, and refuses the plugin's own unless
/// `own_is_meant`: that is the node's, and making it a pod would cut the node off.
///
/// That the namespace is one of networks is left for the agent to see when it enters it.
///
/// # Errors
/// 8
pub(super) fn open(path: &Path, own_is_meant: bool) -> Result<(File, Netns), Failure> {
    let failed = |operation: &str, error: io::Error| {
        let message = format!("{operation} {}: {error}", path.display());
        unusable(message, "lsns -t net (lists the network namespaces there are)")
    };
    // Nothing that the path might name keeps the plugin waiting.
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = i32::try_from(flags.bits())
        .map_err(io::Error::other)
        .and_then(|flags| OpenOptions::new().read(true).custom_flags(flags).open(path))
        .map_err(|error| failed("open CNI_NETNS", error))?;
    let file_system =
        rustix::fs::fstatfs(&file).map_err(|error| failed("look at CNI_NETNS", error.into()))?;
    if file_system.f_type != NSFS {
        let message = format!("CNI_NETNS {} is a file and not a namespace", path.display());
        return Err(unusable(
            message,
            "lsns -t net (lists the network namespaces there are)",
        ));
    }
    let metadata = file
        .metadata()
        .map_err(|error| failed("look at CNI_NETNS", error))?;
    let own =
        std::fs::metadata(OWN).map_err(|error| failed("compare with /proc/self/ns/net CNI_NETNS", error))?;
    let netns = Netns {
        path: path.to_owned(),
        dev: metadata.dev(),
        ino: metadata.ino(),
    };
    if !own_is_meant && (own.dev(), own.ino()) == (netns.dev, netns.ino) {
        let message = format!(
            "CNI_NETNS {} is the namespace that the plugin itself runs in, net:[{}]",
            path.display(),
            netns.ino
        );
        return Err(unusable(
            message,
            "set CNI_NETNS_OVERRIDE=1 if this namespace is really to become a pod's",
        ));
    }
    Ok((file, netns))
}

fn unusable(message: String, next: &str) -> Failure {
    Failure::new(code::NETNS, &UserError::new(codes::CNI_NETNS, message, next))
}
