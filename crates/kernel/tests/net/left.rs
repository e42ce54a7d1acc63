//! What a killed test leaves behind goes with the next test, and nothing else does.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use weft_kernel::process::ProcessId;

use crate::namespaces::TestNs;
use crate::needs_root;
use crate::owned;

const NAME: &str = "left::what_a_killed_test_left_goes_with_the_next_one_and_nothing_else_does";
/// Set where the test is started by itself.
const ACT: &str = "WEFT_LEFT_ACT";
/// What says that the next word is a namespace's name, or a process's ID.
const SAID: &str = "left behind: ";

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

#[test]
fn what_a_killed_test_left_goes_with_the_next_one_and_nothing_else_does() {
    needs_root!();
    match std::env::var(ACT).as_deref() {
        Ok("leave") => {
            let test = TestNs::new("left");
            let mut inside = Command::new("ip")
                .args(["netns", "exec", &test.name, "sleep", "600"])
                .spawn()
                .unwrap();
            while !test
                .exec(&format!("ip netns identify {}", inside.id()))
                .contains(&test.name)
            {}
            eprintln!("{SAID}{}", test.name);
            eprintln!("{SAID}{}", inside.id());
            // It is killed here, unless who started it ends before.
            let _ = std::io::stdin().read_line(&mut String::new());
            inside.kill().unwrap();
            inside.wait().unwrap();
            return;
        }
        Ok(_) => return drop(TestNs::new("next")),
        Err(_) => {}
    }
    let own = TestNs::new("own");
    let mut killed = start("leave");
    let lines = BufReader::new(killed.stderr.take().unwrap()).lines();
    let said: Vec<String> = lines
        .map_while(Result::ok)
        .filter_map(|line| Some(line.split_once(SAID)?.1.to_owned()))
        .take(2)
        .collect();
    let [netns, inside] = said.as_slice() else {
        panic!("it ended early: {said:?}");
    };
    let inside = ProcessId::of(inside.parse().unwrap()).unwrap();
    let exists = |name: &str| Path::new(owned::NETNS_DIR).join(name).exists();

    assert!(start("next").wait().unwrap().success());
    assert!(exists(netns), "its owner lives");
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert!(exists(netns) && inside.is_alive(), "nobody has cleaned up");
    assert!(start("next").wait().unwrap().success());
    assert!(!exists(netns));
    assert!(inside.wait(std::time::Duration::from_secs(5)).unwrap());
    assert!(exists(&own.name));
}

#[test]
fn a_later_process_of_the_same_number_is_not_the_owner() {
    let name = owned::name("wkt", "a-b");
    let ProcessId { pid, start } = ProcessId::current().unwrap();
    assert!(name.starts_with(&format!("wkt-{pid}-{start}-")));
    let earlier = format!("wkt-{pid}-{}-0-a", start - 1);
    let others = [
        "wkt-1-2-a",
        "wkt-1-2-x-a",
        "wkt-0-2-3-a",
        "weft-1-2-3-a",
        "wkt-999999999",
    ];
    let orphan = |name: &str| owned::is_orphan("wkt", name);
    assert_eq!((orphan(&name), orphan(&earlier)), (false, true));
    assert!(!others.into_iter().any(orphan));
}
