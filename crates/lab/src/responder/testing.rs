//! A network namespace for a test.

use std::sync::Arc;

use weft_kernel::NetNs;
use weft_kernel::rtnl::Rtnl;

/// A namespace without a name and with `lo` up; `None`, said on standard error, where privileges are missing.
pub(crate) fn isolated_netns() -> Option<Arc<NetNs>> {
    let netns = match NetNs::create() {
        Ok(netns) => netns,
        Err(error) => {
            eprintln!("skipped: {error}");
            return None;
        }
    };
    Rtnl::open_in(&netns)
        .and_then(|mut rtnl| rtnl.set_up("lo", true))
        .expect("bring lo up");
    Some(Arc::new(netns))
}
