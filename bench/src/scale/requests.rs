//! Requests, counted by who made them, from the API server's audit log and its metrics.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::path::PathBuf;

use anyhow::{Context, Result};
use kube::Client;
use serde::Deserialize;

/// Requests of a stretch of time: how many by user, and by verb and resource, such as `operator` and `create nodes`.
pub(super) type Counts = BTreeMap<String, BTreeMap<String, u64>>;

/// Reads the audit log from where it stopped last.
#[derive(Debug)]
pub(super) struct Audit {
    path: PathBuf,
    read: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    stage: String,
    verb: String,
    user: User,
    object_ref: Option<Object>,
    #[serde(default)]
    response_status: Status,
}

#[derive(Deserialize)]
struct User {
    username: String,
}

#[derive(Deserialize)]
struct Object {
    resource: String,
    subresource: Option<String>,
}

#[derive(Default, Deserialize)]
struct Status {
    #[serde(default)]
    code: u16,
}

// === impl Audit ===

impl Audit {
    pub(super) fn at(path: PathBuf) -> Self {
        Self { path, read: 0 }
    }

    /// The requests since the last call. A watch counts when it begins.
    pub(super) fn since_last(&mut self) -> Result<Counts> {
        let mut counts = Counts::new();
        let Ok(mut file) = File::open(&self.path) else {
            return Ok(counts);
        };
        file.seek(SeekFrom::Start(self.read))?;
        let mut lines = BufReader::new(file);
        let mut line = String::new();
        // What is still being written is for the next call.
        while lines.read_line(&mut line)? > 0 && line.ends_with('\n') {
            self.read += line.len() as u64;
            let entry: Entry = serde_json::from_str(&line).context("parse the audit log")?;
            line.clear();
            let begins = entry.stage == "ResponseStarted";
            if (entry.verb == "watch") != begins {
                continue;
            }
            let resource = entry.object_ref.map_or_else(
                || "other".to_owned(),
                |object| match object.subresource {
                    Some(sub) => format!("{}/{sub}", object.resource),
                    None => object.resource,
                },
            );
            let mut key = format!("{} {resource}", entry.verb);
            if entry.response_status.code >= 300 {
                key += &format!(" ({})", entry.response_status.code);
            }
            *counts
                .entry(entry.user.username)
                .or_default()
                .entry(key)
                .or_default() += 1;
        }
        Ok(counts)
    }
}

/// The sum of the values of all series of a metric whose labels contain all of `labels`.
pub(super) async fn metric(client: &Client, name: &str, labels: &[&str]) -> Result<f64> {
    let request = http::Request::get("/metrics").body(Vec::new())?;
    let text = client.request_text(request).await?;
    Ok(sum(&text, name, labels))
}

fn sum(text: &str, name: &str, labels: &[&str]) -> f64 {
    text.lines()
        .filter_map(|line| line.strip_prefix(name)?.rsplit_once(' '))
        .filter(|(series, _)| series.is_empty() || series.starts_with('{'))
        .filter(|(series, _)| labels.iter().all(|label| series.contains(label)))
        .filter_map(|(_, value)| value.parse::<f64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn requests_are_counted_once_by_user_verb_and_resource() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let mut audit = Audit::at(file.path().to_owned());
        let line = |stage: &str, verb: &str, code: u16| {
            format!(
                r#"{{"stage":"{stage}","verb":"{verb}","user":{{"username":"agent"}},"objectRef":{{"resource":"nodeslices"}},"responseStatus":{{"code":{code}}}}}"#
            )
        };
        for (stage, verb, code) in [
            ("ResponseStarted", "watch", 200),
            ("ResponseComplete", "watch", 200),
            ("ResponseComplete", "list", 200),
            ("ResponseComplete", "list", 429),
        ] {
            writeln!(file, "{}", line(stage, verb, code)).unwrap();
        }
        write!(file, "{{\"stage\":\"Res").unwrap();
        let counts = audit.since_last().unwrap();
        let agent: Vec<(&str, u64)> = counts["agent"]
            .iter()
            .map(|(key, count)| (key.as_str(), *count))
            .collect();
        assert_eq!(
            agent,
            [
                ("list nodeslices", 1),
                ("list nodeslices (429)", 1),
                ("watch nodeslices", 1)
            ]
        );
        assert_eq!(audit.since_last().unwrap(), Counts::new());
    }

    #[test]
    fn series_are_told_by_their_whole_name_and_labels() {
        let text = "size{kind=\"a\"} 1\nsize{kind=\"b\"} 2.5e1\nsize_total{kind=\"b\"} 7\nplain 3\n";
        assert_eq!(sum(text, "size", &["kind=\"b\""]), 25.0);
        assert_eq!(sum(text, "size", &[]), 26.0);
        assert_eq!(sum(text, "plain", &[]), 3.0);
    }
}
