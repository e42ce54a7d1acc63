//! Where and how eagerly a process runs.

use anyhow::{Context, Result};
use rustix::thread::CpuSet;
use thread_priority::{
    RealtimeThreadSchedulePolicy, ThreadPriority, ThreadPriorityValue, ThreadSchedulePolicy,
    set_thread_priority_and_policy, thread_native_id,
};

/// Placement of the whole process; threads that it starts inherit it.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub(crate) struct Args {
    /// Run on this CPU only
    #[arg(long)]
    cpu: Option<usize>,
    /// SCHED_FIFO, so that other work on the machine costs little; ignored where it is not permitted
    #[arg(long)]
    realtime: bool,
}

// === impl Args ===

impl Args {
    /// Moves the calling thread. To be called before others are started.
    pub(crate) fn take(self) -> Result<()> {
        if let Some(cpu) = self.cpu {
            let mut set = CpuSet::new();
            set.set(cpu);
            rustix::thread::sched_setaffinity(None, &set)
                .with_context(|| format!("run on CPU {cpu} only"))?;
        }
        if self.realtime {
            // A container without CAP_SYS_NICE measures with more noise, but it measures.
            let _ = realtime();
        }
        Ok(())
    }
}

fn realtime() -> Result<(), thread_priority::Error> {
    let lowest =
        ThreadPriority::Crossplatform(ThreadPriorityValue::try_from(1u8).unwrap_or(ThreadPriorityValue::MIN));
    set_thread_priority_and_policy(
        thread_native_id(),
        lowest,
        ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::Fifo),
    )
}

/// True if a process of this user may run under SCHED_FIFO. Asked in a thread of its own, which keeps its policy.
pub(crate) fn realtime_permitted() -> bool {
    std::thread::spawn(|| realtime().is_ok()).join().unwrap_or(false)
}

/// The CPUs that this process may use, in ascending order.
pub(crate) fn cpus() -> Result<Vec<usize>> {
    let set = rustix::thread::sched_getaffinity(None).context("read the CPU mask")?;
    Ok((0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect())
}
