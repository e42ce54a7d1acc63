//! Bytes of netlink messages: one writer and one reader for rtnetlink, nf_tables and ctnetlink.
//!
//! Layout after Documentation/userspace-api/netlink/intro.rst: a header of 16
//! bytes (length, type, flags, sequence, port; host byte order), the family's
//! own header, then attributes (length, type, value), everything aligned to 4.

use crate::error::Cause;

pub(crate) const HEADER: usize = 16;

const ATTR_HEADER: usize = 4;
const NLA_F_NESTED: u16 = 1 << 15;
const NLA_TYPE_MASK: u16 = !((1 << 15) | (1 << 14));

/// One request, under construction.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    bytes: Vec<u8>,
    too_long: bool,
}

/// The header of a received message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
}

/// The messages of one datagram. Ends early at a message that doesn't fit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Messages<'a>(&'a [u8]);

/// The attributes of a message or of a nested attribute. Ends early at one that
/// doesn't fit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attrs<'a>(&'a [u8]);

// === impl Message ===

impl Message {
    pub(crate) fn new(kind: u16, flags: u16) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]);
        Self {
            bytes,
            too_long: false,
        }
    }

    /// Appends bytes that are no attribute, the family's header above all.
    pub(crate) fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self.align();
        self
    }

    pub(crate) fn attr(mut self, kind: u16, value: &[u8]) -> Self {
        let start = self.open(kind);
        self.bytes.extend_from_slice(value);
        self.close(start);
        self
    }

    pub(crate) fn u8(self, kind: u16, value: u8) -> Self {
        self.attr(kind, &[value])
    }

    pub(crate) fn u32(self, kind: u16, value: u32) -> Self {
        self.attr(kind, &value.to_ne_bytes())
    }

    pub(crate) fn be16(self, kind: u16, value: u16) -> Self {
        self.attr(kind, &value.to_be_bytes())
    }

    pub(crate) fn be32(self, kind: u16, value: u32) -> Self {
        self.attr(kind, &value.to_be_bytes())
    }

    /// A string with its closing NUL.
    pub(crate) fn str(mut self, kind: u16, value: &str) -> Self {
        let start = self.open(kind);
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
        self.close(start);
        self
    }

    pub(crate) fn nest(mut self, kind: u16, fill: impl FnOnce(Self) -> Self) -> Self {
        let start = self.open(kind | NLA_F_NESTED);
        let mut filled = fill(self);
        filled.close(start);
        filled
    }

    /// Adds flags of the netlink header.
    pub(crate) fn with_flags(mut self, flags: u16) -> Self {
        let all = u16::from_ne_bytes([self.bytes[6], self.bytes[7]]) | flags;
        self.bytes[6..8].copy_from_slice(&all.to_ne_bytes());
        self
    }

    /// Applies `fill` if there is a value.
    pub(crate) fn some<T>(self, value: Option<T>, fill: impl FnOnce(Self, T) -> Self) -> Self {
        match value {
            Some(value) => fill(self, value),
            None => self,
        }
    }

    /// The finished bytes.
    ///
    /// # Errors
    /// An attribute is longer than the 65,535 bytes its length field can say.
    pub(crate) fn finish(mut self, sequence: u32) -> Result<Vec<u8>, Cause> {
        if self.too_long {
            return Err(Cause::Invalid(
                "an attribute would exceed 65,535 bytes".to_owned(),
            ));
        }
        let length = u32::try_from(self.bytes.len())
            .map_err(|_| Cause::Invalid("the message would exceed 4 GiB".to_owned()))?;
        self.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        Ok(self.bytes)
    }

    fn open(&mut self, kind: u16) -> usize {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        start
    }

    fn close(&mut self, start: usize) {
        match u16::try_from(self.bytes.len() - start) {
            Ok(length) => self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes()),
            Err(_) => self.too_long = true,
        }
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(align(self.bytes.len()), 0);
    }
}

// === impl Messages ===

impl<'a> Messages<'a> {
    pub(crate) fn new(datagram: &'a [u8]) -> Self {
        Self(datagram)
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = (Header, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = u32::from_ne_bytes(*self.0.first_chunk()?) as usize;
        let payload = self.0.get(HEADER..length)?;
        let header = Header {
            kind: u16_at(self.0, 4)?,
            flags: u16_at(self.0, 6)?,
            sequence: u32_at(self.0, 8)?,
        };
        self.0 = self.0.get(align(length)..).unwrap_or_default();
        Some((header, payload))
    }
}

// === impl Attrs ===

impl<'a> Attrs<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The attributes behind a fixed header of `length` bytes.
    pub(crate) fn after(payload: &'a [u8], length: usize) -> Self {
        Self(payload.get(align(length)..).unwrap_or_default())
    }

    /// The value of the first attribute of that type.
    pub(crate) fn find(mut self, kind: u16) -> Option<&'a [u8]> {
        self.find_map(|(found, value)| (found == kind).then_some(value))
    }
}

impl<'a> Iterator for Attrs<'a> {
    /// Type without its flag bits, and value.
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16_at(self.0, 0)?);
        let kind = u16_at(self.0, 2)? & NLA_TYPE_MASK;
        let value = self.0.get(ATTR_HEADER..length)?;
        self.0 = self.0.get(align(length)..).unwrap_or_default();
        Some((kind, value))
    }
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The text of a string attribute up to its NUL.
pub(crate) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

const fn align(length: usize) -> usize {
    (length + 3) & !3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_aligned_and_carry_their_unpadded_length() {
        let bytes = Message::new(16, 5)
            .raw(&[7; 3])
            .str(3, "eth0")
            .nest(18, |m| m.u8(1, 9).be16(2, 0x1234))
            .finish(42)
            .unwrap();
        let expected: Vec<u8> = [
            52u32.to_ne_bytes().as_slice(),
            &16u16.to_ne_bytes(),
            &5u16.to_ne_bytes(),
            &42u32.to_ne_bytes(),
            &[0; 4],
            &[7, 7, 7, 0],
            &9u16.to_ne_bytes(),
            &3u16.to_ne_bytes(),
            b"eth0\0\0\0\0",
            &20u16.to_ne_bytes(),
            &(18u16 | NLA_F_NESTED).to_ne_bytes(),
            &5u16.to_ne_bytes(),
            &1u16.to_ne_bytes(),
            &[9, 0, 0, 0],
            &6u16.to_ne_bytes(),
            &2u16.to_ne_bytes(),
            &[0x12, 0x34, 0, 0],
        ]
        .concat();
        assert_eq!(bytes, expected);
    }

    #[test]
    fn every_message_and_attribute_of_a_datagram_is_read_back() {
        let first = Message::new(16, 0)
            .u32(4, 1450)
            .nest(18, |m| m.str(1, "veth"))
            .finish(1)
            .unwrap();
        let second = Message::new(3, 2).finish(1).unwrap();
        let datagram = [first, second].concat();
        let read: Vec<_> = Messages::new(&datagram).collect();
        assert_eq!(read.len(), 2);
        let attrs = Attrs::new(read[0].1);
        assert_eq!(attrs.find(4).and_then(|value| u32_at(value, 0)), Some(1450));
        let kind = attrs
            .find(18)
            .and_then(|nested| Attrs::new(nested).find(1))
            .map(text);
        assert_eq!(kind.as_deref(), Some("veth"));
        assert_eq!(
            read[1].0,
            Header {
                kind: 3,
                flags: 2,
                sequence: 1
            }
        );
    }

    #[test]
    fn truncated_or_lying_input_ends_the_reading_without_a_panic() {
        let datagram = Message::new(16, 0).u32(4, 1450).str(3, "eth0").finish(1).unwrap();
        for cut in 0..datagram.len() {
            assert_eq!(Messages::new(&datagram[..cut]).count(), 0, "cut at {cut}");
        }
        let payload = &datagram[HEADER..];
        assert_eq!(Attrs::new(&payload[..payload.len() - 4]).count(), 1);
        assert_eq!(
            Attrs::new(&[0, 0, 0, 0]).count(),
            0,
            "a zero length must not loop"
        );
        assert_eq!(Attrs::new(&[255, 255, 1, 0, 1]).count(), 0);
    }

    #[test]
    fn an_attribute_beyond_its_length_field_is_refused_and_not_cut() {
        let message = Message::new(1, 0).nest(1, |m| m.attr(2, &vec![0; 65_532]));
        assert!(matches!(message.finish(1), Err(Cause::Invalid(_))));
    }
}
