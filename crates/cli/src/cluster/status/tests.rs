use weft_inspect::{AddressTotals, SliceState};

use super::*;

fn node(number: u8) -> NodeState {
    NodeState {
        name: format!("node-{number}"),
        ready: true,
        address: Some([10, 224, 0, 3 + number].into()),
        blocks: vec![format!("10.244.{number}.0/24")],
        used: 2,
        cooling: 1,
        capacity: 256,
        mtu: Some(1450),
        transport: Some(Transport::Device),
        transport_reason: Some("told so".to_owned()),
        problems: Vec::new(),
    }
}

fn status(nodes: Vec<NodeState>) -> NetworkStatus {
    NetworkStatus {
        api_version: weft_inspect::API_VERSION,
        kind: "NetworkStatus",
        verdict: Verdict::Healthy,
        problems: Vec::new(),
        pools: vec![PoolState {
            name: "default".to_owned(),
            cidrs: vec!["10.244.0.0/16".to_owned()],
            block_size: 24,
            allocated: Some(2),
            capacity: Some(256),
            problems: Vec::new(),
        }],
        slices: SliceState {
            slices: 1,
            nodes: nodes.len(),
            problems: Vec::new(),
        },
        addresses: AddressTotals {
            used: 4,
            cooling: 2,
            capacity: 512,
        },
        nodes,
    }
}

fn with_problem(mut status: NetworkStatus, subject: Subject, message: &str) -> NetworkStatus {
    status.verdict = Verdict::Degraded;
    let message = message.to_owned();
    status.problems.push(Problem { subject, message });
    status
}

/// The screen of a lab cluster, with single spaces.
fn screen(status: &NetworkStatus, wide: bool) -> Vec<String> {
    let lab = ClusterArgs {
        lab: Some("blue".to_owned()),
        ..ClusterArgs::default()
    };
    render(status, &lab, wide)
        .iter()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect()
}

#[test]
fn a_healthy_cluster_fits_on_one_screen() {
    assert_eq!(
        screen(&status(vec![node(1), node(2)]), false),
        [
            "POOL CIDRS BLOCK BLOCKS CONDITION",
            "default 10.244.0.0/16 /24 2/256 ok",
            "",
            "NODE STATUS ADDRESS BLOCKS USED COOLING CAPACITY MTU TRANSPORT",
            "node-1 Ready 10.224.0.4 10.244.1.0/24 2 1 256 1450 device",
            "node-2 Ready 10.224.0.5 10.244.2.0/24 2 1 256 1450 device",
            "",
            &format!(
                "{} healthy: 2 of 2 nodes ready, 4 of 512 addresses used, 2 nodes in 1 slice",
                out::mark(true)
            ),
            "next: weft ip list --lab blue",
        ]
    );
}

#[test]
fn what_is_not_known_yet_is_not_made_up() {
    let mut new = status(vec![NodeState {
        ready: false,
        address: None,
        blocks: Vec::new(),
        used: 0,
        cooling: 0,
        capacity: 0,
        mtu: None,
        transport: None,
        problems: vec!["the operator has made no NodeNetwork for it yet".to_owned()],
        ..node(1)
    }]);
    (new.pools[0].allocated, new.pools[0].capacity) = (None, None);
    new.pools[0].problems = vec!["NoFreeBlock: 1 node waits".to_owned()];
    let lines = screen(&new, false);
    assert_eq!(lines[1], "default 10.244.0.0/16 /24 ?/? NoFreeBlock");
    assert_eq!(lines[4], "node-1 NotReady - - 0 0 0 - -");
}

#[test]
fn problems_are_told_with_what_to_look_at_next() {
    for (subject, said, next) in [
        (
            Subject::Node("node-2".to_owned()),
            "node node-2: m",
            "describe node/node-2 nodenetwork/node-2",
        ),
        (Subject::Pool("p".to_owned()), "pool p: m", "describe podpool p"),
        (Subject::Slices, "node slices: m", "get nodeslices -o yaml"),
        (Subject::Cluster, "m", "get podpools,nodes"),
    ] {
        let lines = screen(&with_problem(status(vec![node(1)]), subject, "m"), false);
        let bad = out::mark(false);
        assert_eq!(
            lines[lines.len() - 3..],
            [
                format!("{bad} {said}"),
                format!(
                    "{bad} degraded, 1 problem: 1 of 1 node ready, 4 of 512 addresses used, 1 node in 1 slice"
                ),
                format!("next: KUBECONFIG=$(weft lab kubeconfig blue) kubectl {next}"),
            ]
        );
    }
}

#[test]
fn of_many_nodes_only_those_that_need_a_look_are_shown() {
    let mut nodes: Vec<NodeState> = (1..=100).map(node).collect();
    nodes[41]
        .problems
        .push("its agent has not reported yet".to_owned());
    let status = status(nodes);
    let lines = screen(&status, false);
    assert_eq!(
        lines[3..7],
        [
            "NODE STATUS ADDRESS BLOCKS USED COOLING CAPACITY MTU TRANSPORT",
            "node-42 Ready 10.224.0.45 10.244.42.0/24 2 1 256 1450 device",
            "99 of 100 nodes are fine; -o wide lists all",
            "",
        ]
    );
    let wide = screen(&status, true);
    assert_eq!(wide.len(), lines.len() + 98);
    assert_eq!(
        wide[3..5],
        [
            "NODE STATUS ADDRESS BLOCKS USED COOLING CAPACITY MTU TRANSPORT WHY",
            "node-1 Ready 10.224.0.4 10.244.1.0/24 2 1 256 1450 device told so",
        ]
    );
}

#[test]
fn a_storm_of_problems_does_not_scroll_the_tables_away() {
    let mut status = status(vec![node(1)]);
    for number in 0..25 {
        status = with_problem(status, Subject::Slices, &format!("problem {number}"));
    }
    let lines = screen(&status, false);
    assert_eq!(lines.iter().filter(|line| line.contains("problem ")).count(), 10);
    assert_eq!(lines[lines.len() - 3], "and 15 more: -o json has them all");
}

#[test]
fn many_blocks_are_counted_unless_the_table_is_wide() {
    let blocks = [0, 64, 128, 192].map(|last| format!("10.244.1.{last}/26"));
    let many = NodeState {
        blocks: blocks.into(),
        ..node(1)
    };
    let shown = |wide| screen(&status(vec![many.clone()]), wide)[4].clone();
    assert!(
        shown(false).contains(" 10.244.1.0/26 and 3 more "),
        "{}",
        shown(false)
    );
    assert!(
        shown(true).contains(" 10.244.1.0/26 10.244.1.64/26 10.244.1.128/26 10.244.1.192/26 "),
        "{}",
        shown(true)
    );
}
