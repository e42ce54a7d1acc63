//! Ctrl-C and SIGTERM as a flag, so that guards remove what they made before the program ends.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

use anyhow::{Context, Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

static ARRIVED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// Takes over SIGINT, SIGTERM and SIGHUP for the rest of the process.
pub(crate) fn install() -> Result<()> {
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&ARRIVED)).context("register a signal handler")?;
    }
    Ok(())
}

/// An error once a signal has arrived.
pub(crate) fn check() -> Result<()> {
    if ARRIVED.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    Ok(())
}
