//! DEL never keeps a pod from ending, whatever the agent and the disk are like, and never takes the next owner's address.

use std::time::{Duration, Instant};

use weft_kernel::rtnl::Rtnl;

use crate::bed::Bed;
use crate::invariants::Invariant;
use crate::support::{is_root, text, weft_ok};

#[test]
fn del_succeeds_while_the_agent_is_away_or_stuck_and_is_made_good_before_the_next_add() {
    if !is_root("del_succeeds_while_the_agent_is_away_or_stuck_and_is_made_good_before_the_next_add") {
        return;
    }
    let bed = Bed::new("away");
    for fault in ["kill-agent", "freeze-agent"] {
        let sandbox = bed.sandbox("a");
        let address = bed.add(&sandbox);
        weft_ok(&["lab", "fault", bed.lab(), fault, "node-1", "--for", "10m"]);
        for again in 0..3 {
            let began = Instant::now();
            let output = bed.cni("DEL", &sandbox);
            Invariant::Delete.took(output.status.success(), began.elapsed());
            eprintln!("{fault}, DEL {again}: {:?}", began.elapsed());
            assert!(output.status.success(), "{fault}: {}", text(&output));
        }
        weft_ok(&["lab", "fault", bed.lab(), fault, "node-1", "--clear"]);
        // The same name again, as soon as the agent answers: its old attachment must be gone first.
        bed.add(&sandbox);
        let audit = bed.audit();
        Invariant::NoLeak.count(1, audit.held().len() - 1);
        assert_eq!(audit.held().len(), 1, "{fault}: {audit:?}");
        assert_ne!(
            audit.held()[&sandbox.id],
            address,
            "an address rests before it is used again"
        );
        bed.delete(&sandbox);
        // A DEL that comes late or again finds nothing, and touches nobody else's.
        let other = bed.sandbox("b");
        let kept = bed.add(&other);
        bed.delete(&sandbox);
        let audit = bed.audit();
        Invariant::NoWrongFree.count(1, usize::from(audit.held().get(&other.id) != Some(&kept)));
        assert_eq!(audit.held().get(&other.id), Some(&kept), "{audit:?}");
        assert_eq!(audit.findings(), [""; 0]);
        bed.delete(&other);
    }
}

#[test]
fn del_succeeds_without_room_for_an_intent_and_the_address_comes_back() {
    if !is_root("del_succeeds_without_room_for_an_intent_and_the_address_comes_back") {
        return;
    }
    let bed = Bed::new("full");
    let sandbox = bed.sandbox("a");
    bed.add(&sandbox);
    weft_ok(&["lab", "fault", bed.lab(), "kill-agent", "node-1", "--for", "10m"]);
    // Nothing can be made where intents are kept: a file is in the directory's place.
    let intents = bed.node_dir().join("state/intents");
    let _ = std::fs::remove_dir_all(&intents);
    std::fs::write(&intents, "").expect("a file");
    let began = Instant::now();
    let output = bed.cni("DEL", &sandbox);
    Invariant::Delete.took(output.status.success(), began.elapsed());
    assert!(output.status.success(), "{}", text(&output));
    sandbox.vanish();
    std::fs::remove_file(&intents).expect("the file goes");
    weft_ok(&["lab", "fault", bed.lab(), "kill-agent", "node-1", "--clear"]);
    // Without an intent, only the namespace that is gone says that the pod is.
    let (took, audit) = bed.until("the address comes back", |audit| audit.held().is_empty());
    eprintln!("given back after {took:?}");
    Invariant::NoLeak.count(1, audit.held().len());
    assert_eq!(audit.findings(), [""; 0]);
    // Interfaces go together, a moment after the DEL.
    let named = || {
        let links = bed.node().run(|| Rtnl::open().unwrap().links().unwrap()).unwrap();
        links.into_iter().find(|link| link.alias.is_some())
    };
    let began = Instant::now();
    while let Some(link) = named() {
        assert!(began.elapsed() < Duration::from_secs(60), "{link:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
