//! Kernel parameters, mounts and sockets.

use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use weft_kernel::rtnl::{Address, LinkSpec};
use weft_kernel::sockets::{FrameSocket, Ipv4Socket, tcp_connect, tcp_listener, udp_packet, udp_socket};
use weft_kernel::sysctl::Key;
use weft_kernel::{mount, sysctl};

use crate::namespaces::TestNs;
use crate::needs_root;

#[test]
fn a_parameter_is_written_once_and_only_in_its_namespace() {
    needs_root!();
    let (test, other) = (TestNs::new("a"), TestNs::new("b"));
    let forward = Key::new("net/ipv4/ip_forward").unwrap();
    let wanted = [
        (forward.clone(), "1".to_owned()),
        (
            Key::new("net/ipv4/ip_local_port_range").unwrap(),
            "32768 60999".to_owned(),
        ),
    ];
    sysctl::write(&other.netns, &[(forward.clone(), "0".to_owned())]).unwrap();
    sysctl::write(&test.netns, &[(forward.clone(), "0".to_owned())]).unwrap();
    assert_eq!(
        sysctl::write(&test.netns, &wanted).unwrap(),
        std::slice::from_ref(&forward),
        "the range has that value already"
    );
    assert_eq!(sysctl::write(&test.netns, &wanted).unwrap(), []);
    assert_eq!(test.exec("cat /proc/sys/net/ipv4/ip_forward").trim(), "1");
    assert_eq!(sysctl::read(&other.netns, &forward).unwrap(), "0");

    let missing = sysctl::write(
        &test.netns,
        &[(Key::ipv4_conf("gone0", "rp_filter").unwrap(), "2".to_owned())],
    );
    assert_eq!(
        missing.unwrap_err().to_string(),
        "set sysctl net/ipv4/conf/gone0/rp_filter to \"2\": No such file or directory (os error 2)"
    );
}

#[test]
fn mounts_are_found_below_a_directory_deepest_first_and_taken_away() {
    needs_root!();
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().canonicalize().unwrap();
    let _clean = UnmountedAtEnd(base.clone());
    let pins = base.join("with space/bpf");
    assert!(mount::bpffs(&pins).unwrap());
    assert!(!mount::bpffs(&pins).unwrap());
    assert!(mount::is_bpffs(&pins).unwrap() && mount::is_mount_point(&pins).unwrap());
    let inner = pins.join("v1");
    std::fs::create_dir(&inner).unwrap();
    mount::bind(&inner, &inner).unwrap();

    let targets: Vec<_> = mount::under(&base)
        .unwrap()
        .into_iter()
        .map(|mount| mount.target)
        .collect();
    assert_eq!(targets, [inner.clone(), pins.clone()]);
    for target in &targets {
        assert!(mount::unmount(target).unwrap());
    }
    assert!(!mount::unmount(&pins).unwrap());
    assert_eq!(mount::under(&base).unwrap(), []);
}

#[test]
fn sockets_stay_in_the_namespace_they_were_opened_in() {
    needs_root!();
    let test = TestNs::new("sock");
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let listener = tcp_listener(&test.netns, any).unwrap();
    let address = listener.local_addr().unwrap();
    let client = tcp_connect(&test.netns, address, Duration::from_secs(5)).unwrap();
    let (_, peer) = listener.accept().unwrap();
    assert_eq!(peer, client.local_addr().unwrap());
    let elsewhere = TestNs::new("elsewhere");
    assert!(tcp_connect(&elsewhere.netns, address, Duration::from_secs(5)).is_err());
}

#[test]
fn handmade_packets_and_frames_arrive_with_the_source_they_were_given() {
    needs_root!();
    let (left, right) = (TestNs::new("left"), TestNs::new("right"));
    left.rtnl()
        .create_veth(
            &LinkSpec {
                up: true,
                ..LinkSpec::new("l0")
            },
            &LinkSpec {
                up: true,
                netns: Some(&right.netns),
                ..LinkSpec::new("r0")
            },
        )
        .unwrap();
    for (test, link, net) in [(&left, "l0", "192.0.2.1/24"), (&right, "r0", "192.0.2.2/24")] {
        let mut rtnl = test.rtnl();
        let index = rtnl.link_index(link).unwrap();
        rtnl.add_address(&Address::new(index, net.parse::<ipnet::IpNet>().unwrap()))
            .unwrap();
    }
    let receiver = udp_socket(&right.netns, "192.0.2.2:0".parse().unwrap()).unwrap();
    receiver.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let to = ipv4(&receiver);

    let spoofed = "192.0.2.77:1234".parse().unwrap();
    Ipv4Socket::open(&left.netns)
        .unwrap()
        .send_udp(spoofed, to, b"packet")
        .unwrap();
    assert_eq!(receive(&receiver), (b"packet".to_vec(), SocketAddr::V4(spoofed)));

    let mac = |test: &TestNs, link: &str| test.rtnl().get_link(link).unwrap().mac.unwrap().octets();
    let frame = [
        &mac(&right, "r0")[..],
        &mac(&left, "l0"),
        &[0x08, 0x00],
        &udp_packet(spoofed, to, b"frame").unwrap(),
    ]
    .concat();
    let seen = FrameSocket::open(&right.netns, "r0").unwrap();
    FrameSocket::open(&left.netns, "l0")
        .unwrap()
        .send(&frame)
        .unwrap();
    assert_eq!(receive(&receiver), (b"frame".to_vec(), SocketAddr::V4(spoofed)));
    let mut buffer = [0; 2048];
    loop {
        let length = seen.receive(&mut buffer, Duration::from_secs(5)).unwrap();
        if buffer[..length] == frame {
            break;
        }
    }
    assert!(
        FrameSocket::open(&left.netns, "gone0")
            .unwrap_err()
            .is_not_found()
    );
}

struct UnmountedAtEnd(PathBuf);

impl Drop for UnmountedAtEnd {
    fn drop(&mut self) {
        for mount in mount::under(&self.0).unwrap_or_default() {
            let _ = mount::unmount(&mount.target);
        }
    }
}

fn ipv4(socket: &UdpSocket) -> std::net::SocketAddrV4 {
    match socket.local_addr().unwrap() {
        SocketAddr::V4(address) => address,
        SocketAddr::V6(address) => panic!("{address} is no IPv4 address"),
    }
}

fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = [0; 2048];
    let (length, from) = socket.recv_from(&mut buffer).unwrap();
    (buffer[..length].to_vec(), from)
}
