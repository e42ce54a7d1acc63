//! Links that lose packets, as packets meet them.

use std::net::UdpSocket;
use std::time::Duration;

use weft_kernel::nft::Nft;
use weft_kernel::rtnl::LinkSpec;

use crate::namespaces::TestNs;
use crate::needs_root;

const SENDER: &str = "10.9.0.1";
const RECEIVER: &str = "10.9.0.2";

/// What is counted; lower bytes are marks.
const COUNTED: u8 = u8::MAX;

fn bind(ns: &TestNs, address: &str) -> UdpSocket {
    ns.netns.run(|| UdpSocket::bind((address, 9)).unwrap()).unwrap()
}

/// How many of 1,000 datagrams arrive, on a link that does not lose all.
fn arrive(sender: &TestNs, receiver: &TestNs) -> usize {
    let (from, to) = (bind(sender, SENDER), bind(receiver, RECEIVER));
    to.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let mut arrived = 0;
    for round in 0..10 {
        for _ in 0..100 {
            from.send_to(&[COUNTED], (RECEIVER, 9)).unwrap();
        }
        // A cable reorders nothing: what arrives at all arrives before the mark, which is repeated until it does.
        let mut last = COUNTED;
        while last != round {
            from.send_to(&[round], (RECEIVER, 9)).unwrap();
            let mut buffer = [0];
            while last != round && to.recv(&mut buffer).is_ok() {
                [last] = buffer;
                arrived += usize::from(last == COUNTED);
            }
        }
    }
    arrived
}

#[test]
fn a_link_loses_the_share_it_is_told_to_and_none_afterwards() {
    needs_root!();
    let (sender, receiver) = (TestNs::new("from"), TestNs::new("to"));
    let end = LinkSpec {
        up: true,
        ..LinkSpec::new("eth0")
    };
    let other = LinkSpec {
        netns: Some(&receiver.netns),
        ..end
    };
    sender.rtnl().create_veth(&end, &other).unwrap();
    sender.exec(&format!("ip address add {SENDER}/24 dev eth0"));
    receiver.exec(&format!("ip address add {RECEIVER}/24 dev eth0"));
    let mut nft = Nft::open_in(&receiver.netns).unwrap();
    assert_eq!(arrive(&sender, &receiver), 1000);

    nft.lose("eth0", 50).unwrap();
    // Fifteen standard deviations on either side.
    let half = arrive(&sender, &receiver);
    assert!((260..=740).contains(&half), "{half} of 1000 arrived");

    nft.lose("eth0", 100).unwrap();
    let to = bind(&receiver, RECEIVER);
    to.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let from = bind(&sender, SENDER);
    for _ in 0..1000 {
        from.send_to(&[COUNTED], (RECEIVER, 9)).unwrap();
    }
    assert!(to.recv(&mut [0]).is_err(), "a datagram arrived");
    drop((from, to));

    nft.lose("eth0", 0).unwrap();
    assert_eq!(arrive(&sender, &receiver), 1000);
    assert_eq!(receiver.exec("nft list tables"), "");
    nft.lose("eth0", 0).unwrap();
}
