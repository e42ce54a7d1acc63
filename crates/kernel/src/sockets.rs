//! Sockets inside a namespace, usable anywhere; packets made by hand.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use crate::error::{Context, Result};
use crate::netns::NetNs;
use crate::rtnl::Rtnl;
use crate::sys;

/// A TCP listener in `netns`; port 0 lets the kernel choose.
///
/// # Errors
/// The address is in use or not of that namespace.
pub fn tcp_listener(netns: &NetNs, address: SocketAddr) -> Result<TcpListener> {
    netns
        .run(|| TcpListener::bind(address))?
        .context("listen on TCP", address)
}

/// A TCP connection from `netns`.
///
/// # Errors
/// It is refused, or doesn't come about within `timeout`.
pub fn tcp_connect(netns: &NetNs, address: SocketAddr, timeout: Duration) -> Result<TcpStream> {
    netns
        .run(|| TcpStream::connect_timeout(&address, timeout))?
        .context("connect to TCP", address)
}

/// A UDP socket in `netns`, bound to `address`; port 0 lets the kernel choose.
///
/// # Errors
/// The address is in use or not of that namespace.
pub fn udp_socket(netns: &NetNs, address: SocketAddr) -> Result<UdpSocket> {
    netns
        .run(|| UdpSocket::bind(address))?
        .context("bind UDP", address)
}

/// An `AF_PACKET` socket on one link: whole Ethernet frames, past routing and
/// netfilter (packet(7)).
#[derive(Debug)]
pub struct FrameSocket {
    socket: Socket,
}

/// A raw IPv4 socket that sends packets with the header as given, whatever
/// their source (raw(7), `IP_HDRINCL`). They are routed and pass netfilter.
#[derive(Debug)]
pub struct Ipv4Socket {
    socket: Socket,
}

// === impl FrameSocket ===

impl FrameSocket {
    /// Opens one on the link of that name; it sends and receives there only.
    ///
    /// # Errors
    /// There is no such link, or privileges are missing (CAP_NET_RAW).
    pub fn open(netns: &NetNs, link: &str) -> Result<Self> {
        let index = Rtnl::open_in(netns)?.link_index(link)?;
        netns
            .run(|| -> io::Result<Self> {
                // With protocol 0 nothing is received before bind names the link.
                let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
                socket.bind(&sys::packet_address(libc::ETH_P_ALL as u16, index))?;
                Ok(Self { socket })
            })?
            .context("open packet socket on", link)
    }

    /// Sends one frame, Ethernet header first, without checksum of its own.
    ///
    /// # Errors
    /// The link is down (`ENETDOWN`), or the frame is larger than its MTU (`EMSGSIZE`).
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.socket.send(frame).map(drop)
    }

    /// Receives one frame, also those that this host sends; cut at the buffer's end.
    ///
    /// # Errors
    /// Nothing came within `timeout` (`WouldBlock`), or the link went down.
    pub fn receive(&self, buffer: &mut [u8], timeout: Duration) -> io::Result<usize> {
        self.socket.set_read_timeout(Some(timeout))?;
        io::Read::read(&mut &self.socket, buffer)
    }
}

// === impl Ipv4Socket ===

impl Ipv4Socket {
    /// Opens one in `netns`.
    ///
    /// # Errors
    /// Privileges are missing (CAP_NET_RAW).
    pub fn open(netns: &NetNs) -> Result<Self> {
        netns
            .run(|| -> io::Result<Self> {
                let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))?;
                socket.set_header_included_v4(true)?;
                Ok(Self { socket })
            })?
            .context("open", "raw IPv4 socket")
    }

    /// Sends a packet that begins with its IPv4 header. The kernel fills in
    /// total length, checksum, and an identification of 0.
    ///
    /// # Errors
    /// There is no route, or the packet is larger than the link's MTU (`EMSGSIZE`).
    pub fn send(&self, packet: &[u8], to: Ipv4Addr) -> io::Result<()> {
        self.socket
            .send_to(packet, &SocketAddrV4::new(to, 0).into())
            .map(drop)
    }

    /// Sends one UDP datagram with any source, DF set, TTL 64.
    ///
    /// # Errors
    /// As for [`send`](Self::send), or the payload exceeds 65,507 bytes.
    pub fn send_udp(&self, from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> io::Result<()> {
        self.send(&udp_packet(from, to, payload)?, *to.ip())
    }
}

/// An IPv4 packet (RFC 791) with a UDP datagram (RFC 768), both checksums
/// filled in, DF set, TTL 64.
///
/// # Errors
/// The payload exceeds 65,507 bytes.
pub fn udp_packet(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> io::Result<Vec<u8>> {
    const IP: usize = 20;
    const UDP: usize = 8;
    let total = u16::try_from(IP + UDP + payload.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let length = total - IP as u16;
    let mut packet = Vec::with_capacity(usize::from(total));
    packet.extend_from_slice(&[0x45, 0]);
    packet.extend_from_slice(&total.to_be_bytes());
    packet.extend_from_slice(&[0, 0, 0x40, 0, 64, libc::IPPROTO_UDP as u8, 0, 0]);
    packet.extend_from_slice(&from.ip().octets());
    packet.extend_from_slice(&to.ip().octets());
    let header = checksum([&packet]);
    packet[10..12].copy_from_slice(&header.to_be_bytes());

    packet.extend_from_slice(&from.port().to_be_bytes());
    packet.extend_from_slice(&to.port().to_be_bytes());
    packet.extend_from_slice(&length.to_be_bytes());
    packet.extend_from_slice(&[0, 0]);
    packet.extend_from_slice(payload);
    let pseudo = [[0, libc::IPPROTO_UDP as u8], length.to_be_bytes()].concat();
    let datagram = match checksum([&packet[12..IP], &pseudo, &packet[IP..]]) {
        // Zero means "none" (RFC 768); its one's complement is the same sum.
        0 => 0xffff,
        sum => sum,
    };
    packet[IP + 6..IP + 8].copy_from_slice(&datagram.to_be_bytes());
    Ok(packet)
}

/// The Internet checksum (RFC 1071) over parts of which all but the last have
/// an even length.
fn checksum<const N: usize>(parts: [&[u8]; N]) -> u16 {
    let mut sum: u32 = 0;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handmade_datagram_sums_to_zero_as_a_receiver_checks_it() {
        let from = "10.244.1.5:1000".parse().unwrap();
        let to = "10.244.2.7:53".parse().unwrap();
        for payload in [b"".as_slice(), b"odd", b"even"] {
            let packet = udp_packet(from, to, payload).unwrap();
            assert_eq!(checksum([&packet[..20]]), 0);
            let length = u16::try_from(8 + payload.len()).unwrap();
            let pseudo = [[0, 17], length.to_be_bytes()].concat();
            assert_eq!(checksum([&packet[12..20], &pseudo, &packet[20..]]), 0);
            assert_eq!(&packet[28..], payload);
        }
        assert!(udp_packet(from, to, &vec![0; 65_508]).is_err());
    }
}
