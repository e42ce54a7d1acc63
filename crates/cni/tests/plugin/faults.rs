//! The agent is down, hangs, dies or talks nonsense; the disk is full.

use std::io::Write;

use serde_json::json;
use weft_cni::intent::Intent;
use weft_cni::protocol::{Command, Pod, Reply};
use weft_cni::spec::Failure;
use weft_model::AttachmentKey;

use crate::agent::{FakeAgent, attached, content};
use crate::call::{Answer, Call, ID};

fn intent() -> Intent {
    let some = |text: &str| Some(text.to_owned());
    Intent {
        key: AttachmentKey::new(ID, "eth0").unwrap(),
        network: "weft".to_owned(),
        pod: Pod {
            namespace: some("shop"),
            name: some("web-0"),
            uid: some("4e7d"),
            infra_container_id: some("4f1c"),
        },
    }
}

fn commands(agent: &FakeAgent) -> Vec<&'static str> {
    agent
        .requests()
        .iter()
        .map(|request| request.command.name())
        .collect()
}

/// A call that does not wait a minute for an agent that never answers.
fn hasty(command: &str, agent: &FakeAgent) -> Call {
    Call::new(command, agent)
        .config("timeoutSeconds", json!(1))
        .config("prevResult", json!({}))
}

#[test]
fn while_the_agent_is_down_everything_says_so_and_only_a_del_succeeds() {
    for (agent, reason) in [
        (FakeAgent::absent(), "No such file or directory (os error 2)"),
        (FakeAgent::killed(), "Connection refused (os error 111)"),
    ] {
        let why = format!(
            "WEFT-1404: the node's agent can't be reached: connect to {}: {reason}",
            agent.socket().display()
        );
        for (command, code) in [("ADD", 11), ("CHECK", 11), ("GC", 11), ("STATUS", 50)] {
            assert_eq!(
                hasty(command, &agent).run().error(),
                (code, why.clone()),
                "{command}"
            );
        }
        // No ADD can have happened, so there is nothing to undo.
        assert_eq!(agent.intents(), []);

        let answer = Call::new("DEL", &agent).run();
        answer.done();
        assert_eq!(agent.intents(), [intent()]);
        assert_eq!(
            answer.stderr,
            format!(
                "DEL of {ID}/eth0: connect to the agent's socket {}: {reason}; left an intent in {} for the agent\n",
                agent.socket().display(),
                agent.intent_dir().display()
            )
        );
        Call::new("DEL", &agent).run().done();
        assert_eq!(agent.intents(), [intent()]);
    }
}

#[test]
fn an_agent_that_never_answers_is_given_up_and_an_add_is_taken_back() {
    let agent = FakeAgent::frozen();
    let why = |operation: &str| {
        let socket = agent.socket();
        let socket = socket.display();
        format!("WEFT-1404: the node's agent at {socket} gave no answer: {operation}: no answer in 1 s")
    };
    let waiting = "wait for the agent's reply";
    assert_eq!(hasty("ADD", &agent).run().error(), (11, why(waiting)));
    assert_eq!(commands(&agent), ["ADD", "DEL"]);
    assert_eq!(agent.intents(), [intent()]);
    for (command, code) in [("CHECK", 11), ("GC", 11), ("STATUS", 50)] {
        assert_eq!(
            hasty(command, &agent).run().error(),
            (code, why(waiting)),
            "{command}"
        );
    }
}

#[test]
fn a_del_does_not_wait_for_an_agent_that_never_answers() {
    let agent = FakeAgent::frozen();
    Call::new("DEL", &agent).run().done();
    assert_eq!(agent.intents(), [intent()]);
}

#[test]
fn an_agent_that_does_not_even_accept_is_given_up() {
    let (agent, _queued, _listener) = FakeAgent::full();
    let why = format!(
        "WEFT-1404: the node's agent can't be reached: connect to {}: \
         the agent does not accept connections (its queue is full)",
        agent.socket().display()
    );
    assert_eq!(hasty("ADD", &agent).run().error(), (11, why));
    assert_eq!(agent.intents(), []);
    Call::new("DEL", &agent).run().done();
    assert_eq!(agent.intents(), [intent()]);
}

#[test]
fn an_agent_that_dies_in_the_middle_leaves_no_attachment_behind() {
    for (bytes, got) in [
        (
            &b""[..],
            "wait for the agent's reply: the connection ended after 0 of 12 bytes",
        ),
        (
            b"weft\0\x01",
            "wait for the agent's reply: the connection ended after 6 of 12 bytes",
        ),
        (
            b"weft\0\x01\0\0\0\0\0\x20{\"added\":",
            "wait for the agent's reply: the connection ended after 9 of 32 bytes",
        ),
    ] {
        let agent = FakeAgent::saying(bytes);
        let (code, message) = hasty("ADD", &agent).run().error();
        assert_eq!(code, 11);
        assert!(message.ends_with(got), "{message}");
        assert_eq!(commands(&agent), ["ADD", "DEL"]);
        assert_eq!(agent.intents(), [intent()]);
        for (command, code) in [("CHECK", 11), ("GC", 11), ("STATUS", 50)] {
            assert_eq!(hasty(command, &agent).run().error().0, code, "{command}");
        }
    }
}

#[test]
fn an_agent_that_talks_nonsense_is_told_from_one_that_is_down() {
    let mut endless = b"weft\0\x01\0\0\xff\xff\xff\xff".to_vec();
    endless.extend([b'x'; 1 << 16]);
    for bytes in [
        b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
        b"weft\0\x02\0\0\0\0\0\x06\"done\"".to_vec(),
        b"weft\0\x01\0\0\0\0\0\x06\"gone\"".to_vec(),
        b"weft\0\x01\0\0\0\0\0\x00".to_vec(),
        b"weft\0\x01\0\0\0\0\0\x04\xff\xfe\xfd\xfc".to_vec(),
        endless,
    ] {
        let agent = FakeAgent::saying(bytes);
        for (command, code) in [("ADD", 999), ("CHECK", 999), ("GC", 999), ("STATUS", 50)] {
            let (told, message) = hasty(command, &agent).run().error();
            assert_eq!(told, code);
            assert!(message.starts_with("WEFT-1409: agent at /"), "{message}");
        }
        assert_eq!(commands(&agent), ["ADD", "DEL", "CHECK", "GC", "STATUS"]);
        Call::new("DEL", &agent).run().done();
        assert_eq!(agent.intents(), [intent()]);
    }
}

#[test]
fn an_answer_to_another_question_is_no_success() {
    let done = FakeAgent::answering(|_| Reply::Done);
    assert_eq!(
        hasty("ADD", &done).run().error(),
        (
            999,
            "WEFT-1409: the agent answered ADD without a result".to_owned()
        )
    );
    assert_eq!((commands(&done), done.intents()), (vec!["ADD", "DEL"], vec![]));

    let added = FakeAgent::answering(|_| Reply::Added(attached()));
    for command in ["CHECK", "GC", "STATUS"] {
        assert_eq!(
            hasty(command, &added).run().error(),
            (
                999,
                "WEFT-1409: the agent answered with the result of another command".to_owned()
            )
        );
    }
    Call::new("DEL", &added).run().done();
    assert_eq!(added.intents(), [intent()]);
}

#[test]
fn a_result_that_the_runtimes_version_has_no_room_for_is_taken_back() {
    let agent = FakeAgent::answering(|request| match request.command {
        Command::Add(_) => {
            let mut attached = attached();
            attached.addresses.clear();
            Reply::Added(attached)
        }
        _ => Reply::Done,
    });
    assert_eq!(
        Call::new("ADD", &agent)
            .config("cniVersion", json!("0.2.0"))
            .run()
            .error(),
        (
            999,
            "WEFT-1409: a result without an address can't be told in CNI version 0.2.0".to_owned()
        )
    );
    assert_eq!(commands(&agent), ["ADD", "DEL"]);
}

#[test]
fn a_del_that_the_agent_refuses_is_left_for_later() {
    let agent = FakeAgent::answering(|_| {
        Reply::Failed(Failure {
            code: 11,
            msg: "WEFT-1308: write /var/lib/weft/ledger.redb: no space left on device".to_owned(),
            details: "next: df /var/lib/weft".to_owned(),
        })
    });
    let answer = Call::new("DEL", &agent).run();
    answer.done();
    assert!(answer.stderr.contains("no space left on device"), "{answer:?}");
    assert_eq!(agent.intents(), [intent()]);
}

#[test]
fn a_del_succeeds_also_where_no_intent_can_be_left() {
    let agent = FakeAgent::absent();
    for directory in ["/dev/null/intents", "/proc/intents", "/proc/self/task/intents"] {
        let answer = Call::new("DEL", &agent)
            .config("intentDir", json!(directory))
            .run();
        answer.done();
        let why = format!("no intent could be left in {directory}: ");
        assert!(
            answer.stderr.starts_with("error[WEFT-1408]: DEL of "),
            "{answer:?}"
        );
        assert!(answer.stderr.contains(&why), "{answer:?}");
    }
}

/// In a user namespace of its own, where anybody may mount; where nobody may, why not.
fn with_intents_on(mount: &str) -> Result<Answer, String> {
    let agent = FakeAgent::absent();
    let directory = agent.directory();
    let script = format!("set -e; cd {}; {mount}; exec \"$0\"", directory.display());
    let answer = Call::new("DEL", &agent)
        .config("intentDir", json!(directory.join("intents")))
        .through(&[
            "unshare",
            "--user",
            "--map-root-user",
            "--mount",
            "sh",
            "-c",
            &script,
        ])
        .run();
    if answer.stderr.starts_with("unshare:") || answer.stderr.starts_with("mount:") {
        return Err(format!(
            "no mounts in a user namespace: {}",
            answer.stderr.trim_end()
        ));
    }
    Ok(answer)
}

#[test]
fn a_del_succeeds_on_a_read_only_disk() {
    let mount = "mkdir intents; mount -t tmpfs -o ro none intents";
    match with_intents_on(mount) {
        Ok(answer) => {
            answer.done();
            assert!(
                answer.stderr.contains("Read-only file system (os error 30)"),
                "{answer:?}"
            );
        }
        Err(reason) => println!("skipped: {reason}"),
    }
}

#[test]
fn a_del_succeeds_on_a_full_disk_and_leaves_no_torn_intent() {
    let mount = "mkdir intents; mount -t tmpfs -o size=4k none intents; echo x > intents/full@eth0; \
                 trap 'ls -A intents >&2' EXIT; \"$0\"; exit";
    match with_intents_on(mount) {
        Ok(answer) => {
            answer.done();
            assert!(
                answer.stderr.contains("No space left on device (os error 28)"),
                "{answer:?}"
            );
            assert!(answer.stderr.ends_with("\nfull@eth0\n"), "{answer:?}");
        }
        Err(reason) => println!("skipped: {reason}"),
    }
}

#[test]
fn a_runtime_that_went_away_is_no_reason_to_panic() {
    let agent = FakeAgent::answering(content);
    let call = Call::new("ADD", &agent);
    let mut child = call.spawn();
    drop(child.stdout.take());
    drop(child.stderr.take());
    child
        .stdin
        .take()
        .unwrap()
        .write_all(call.stdin().as_bytes())
        .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
}
