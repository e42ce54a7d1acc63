//! A panic, on whatever thread, ends in one CNI error object. In a process of its own, and
//! without the test harness: that one writes to standard output too.

use std::io::Write;
use std::process::{Command, ExitCode};
use std::thread;

use serde_json::{Value, json};
use weft_cni::plugin;

const KIND: &str = "PANIC_IN";

fn main() -> ExitCode {
    match std::env::var(KIND).as_deref() {
        Ok("main") => {
            plugin::install_panic_hook();
            panic!("on the main thread");
        }
        Ok("thread") => {
            plugin::install_panic_hook();
            let _ = thread::spawn(|| panic!("on another thread")).join();
            ExitCode::SUCCESS
        }
        Ok("answered") => {
            plugin::install_panic_hook();
            plugin::answer_once(&json!({ "cniVersion": "1.1.0" })).unwrap();
            panic!("after the answer");
        }
        _ => {
            let name = "a_panic_is_answered_with_one_error_object";
            let arguments: Vec<_> = std::env::args().skip(1).collect();
            // What `cargo nextest` asks of a test binary.
            if arguments.iter().any(|argument| argument == "--list") {
                if !arguments.iter().any(|argument| argument == "--ignored") {
                    let _ = writeln!(std::io::stdout(), "{name}: test");
                }
                return ExitCode::SUCCESS;
            }
            a_panic_is_answered_with_one_error_object();
            ExitCode::SUCCESS
        }
    }
}

fn a_panic_is_answered_with_one_error_object() {
    for (kind, message) in [("main", "on the main thread"), ("thread", "on another thread")] {
        let (code, answer) = run(kind);
        assert_eq!((code, &answer["code"]), (Some(1), &json!(999)));
        let told = answer["msg"].as_str().unwrap();
        assert!(
            told.starts_with("WEFT-1410: defect in weft-cni at crates/cni/tests/panic.rs:"),
            "{told}"
        );
        assert!(told.ends_with(message), "{told}");
    }
    assert_eq!(run("answered"), (Some(1), json!({ "cniVersion": "1.1.0" })));
}

fn run(kind: &str) -> (Option<i32>, Value) {
    let output = Command::new(std::env::current_exe().unwrap())
        .env(KIND, kind)
        .output()
        .unwrap();
    (
        output.status.code(),
        serde_json::from_slice(&output.stdout).unwrap(),
    )
}
