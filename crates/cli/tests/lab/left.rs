//! What a killed test leaves behind goes with the next test, and nothing else does.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::owned::NETNS_DIR;
use crate::support::{Name, is_root, traces, weft, weft_json, weft_ok};

const NAME: &str = "left::what_a_killed_test_left_goes_with_the_next_one_and_nothing_else_does";
/// Set where the test is started by itself.
const ACT: &str = "WEFT_LEFT_ACT";
/// Precedes a cluster's name.
const SAID: &str = "makes cluster ";

/// Starts this test as another process.
fn start(act: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", NAME, "--nocapture"])
        .env(ACT, act)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Makes a cluster and a file, and waits to be killed.
fn leave() {
    let name = Name::new("left");
    std::fs::write(std::env::temp_dir().join(format!("{}.yaml", name.as_str())), "").unwrap();
    eprintln!("{SAID}{}", name.as_str());
    weft_ok(&["lab", "create", name.as_str(), "--node-count", "2"]);
    // Unless who started it ends before.
    let _ = std::io::stdin().read_line(&mut String::new());
}

/// Everything of a cluster but its processes, some of which come and go.
fn lasting(name: &Name) -> BTreeSet<String> {
    let all = name.traces().into_iter();
    all.filter(|trace| !trace.starts_with("process ")).collect()
}

#[test]
fn what_a_killed_test_left_goes_with_the_next_one_and_nothing_else_does() {
    if !is_root("what_a_killed_test_left_goes_with_the_next_one_and_nothing_else_does") {
        return;
    }
    match std::env::var(ACT).as_deref() {
        Ok("leave") => return leave(),
        Ok(_) => return drop(Name::new("next")),
        Err(_) => {}
    }
    let own = Name::new("own");
    weft_ok(&["lab", "create", own.as_str(), "--node-count", "1"]);
    let before = lasting(&own);
    for moment in ["begun", "ready"] {
        let is_there = |left: &str| match moment {
            "begun" => Path::new(NETNS_DIR).join(format!("weft-{left}.node-1")).exists(),
            _ => weft(&["lab", "status", left]).status.success(),
        };
        let mut killed = start("leave");
        let mut lines = BufReader::new(killed.stderr.take().unwrap()).lines();
        let said = lines.find_map(|line| Some(line.ok()?.split_once(SAID)?.1.to_owned()));
        let left = said.expect("it says what it makes");
        let began = Instant::now();
        while !is_there(&left) {
            assert!(began.elapsed() < Duration::from_secs(120), "{left} is not made");
            std::thread::sleep(Duration::from_millis(5));
        }
        killed.kill().unwrap();
        killed.wait().unwrap();
        assert!(!traces(&left).is_empty(), "nobody has cleaned up");
        assert!(start("next").wait().unwrap().success());
        assert_eq!(
            traces(&left),
            BTreeSet::new(),
            "killed when its cluster was {moment}"
        );
        assert_eq!(lasting(&own), before);
        assert_eq!(weft_json(&["lab", "status", own.as_str()])["phase"], "Ready");
    }
}
