use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::agent::within;
use crate::env::Invocation;
use crate::spec::Failure;

/// A line of the log file, in JSON.
#[derive(Debug)]
pub struct Entry {
    file: PathBuf,
    line: Value,
}

/// A log on a dead disk must not keep a DEL from ending.
const PATIENCE: Duration = Duration::from_millis(200);

// === impl Entry ===

impl Entry {
    pub(super) fn new(file: PathBuf, network: &str, invocation: &Invocation) -> Self {
        let (command, key) = match invocation {
            Invocation::About | Invocation::Version => ("VERSION", None),
            Invocation::Add(sandbox) => ("ADD", Some(&sandbox.key)),
            Invocation::Check(sandbox) => ("CHECK", Some(&sandbox.key)),
            Invocation::Del { key, .. } => ("DEL", Some(key)),
            Invocation::Gc => ("GC", None),
            Invocation::Status => ("STATUS", None),
        };
        let line = json!({
            "time": rfc3339(SystemTime::now()),
            "command": command,
            "network": network,
            "attachment": key,
        });
        Self { file, line }
    }

    pub(super) fn finish(&mut self, took: Duration, failure: Option<&Failure>, notes: &[String]) {
        self.line["seconds"] = json!(took.as_secs_f64());
        self.line["code"] = json!(failure.map_or(0, |failure| failure.code));
        if let Some(failure) = failure {
            self.line["error"] = json!(failure.msg);
        }
        if !notes.is_empty() {
            self.line["notes"] = json!(notes);
        }
    }

    /// Appends the line to the file.
    ///
    /// # Errors
    /// What the file system says, or that it said nothing for too long.
    pub fn write(self) -> io::Result<()> {
        within(PATIENCE, move || {
            let mut line = self.line.to_string();
            line.push('\n');
            let mut file = OpenOptions::new()
                .append(true)
                .create(true)
                .mode(0o600)
                .open(&self.file)?;
            file.write_all(line.as_bytes())
        })
        .unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into()))
    }
}

/// UTC with milliseconds. Days to date after Howard Hinnant, "chrono-Compatible
/// Low-Level Date Algorithms", `civil_from_days`.
fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!(
        "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z",
        since.subsec_millis()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_rfc_3339_has_them() {
        let at = |seconds, millis: u32| {
            rfc3339(SystemTime::UNIX_EPOCH + Duration::new(seconds, millis * 1_000_000))
        };
        assert_eq!(at(0, 0), "1970-01-01T00:00:00.000Z");
        assert_eq!(at(951_827_696, 7), "2000-02-29T12:34:56.007Z");
        assert_eq!(at(1_709_251_199, 999), "2024-02-29T23:59:59.999Z");
        assert_eq!(at(1_795_426_200, 500), "2026-11-23T09:30:00.500Z");
        assert_eq!(at(4_107_542_400, 0), "2100-03-01T00:00:00.000Z");
    }
}
