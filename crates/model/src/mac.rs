use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A 48-bit Ethernet address, first octet on the wire first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

/// A text that is not six hexadecimal octets between colons.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not an Ethernet address: expected aa:bb:cc:dd:ee:ff")]
pub struct MacError(String);

// === impl Mac ===

impl Mac {
    /// The octets, first on the wire first.
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let mut parts = text.split(':');
        let mut octets = [0; 6];
        for octet in &mut octets {
            *octet = parts
                .next()
                .filter(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()))
                .and_then(|part| u8::from_str_radix(part, 16).ok())
                .ok_or_else(|| MacError(text.to_owned()))?;
        }
        match parts.next() {
            None => Ok(Self(octets)),
            Some(_) => Err(MacError(text.to_owned())),
        }
    }
}

impl TryFrom<String> for Mac {
    type Error = MacError;

    fn try_from(text: String) -> Result<Self, MacError> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> String {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ethernet_address_reads_back_and_nothing_else_is_one() {
        let mac = Mac([0x0a, 0x58, 0, 0xff, 1, 2]);
        assert_eq!(mac.to_string(), "0a:58:00:ff:01:02");
        assert_eq!(mac.to_string().parse(), Ok(mac));
        for text in [
            "",
            "0a:58:00:ff:01",
            "0a:58:00:ff:01:02:03",
            "0a:58:00:ff:1:02",
            "+a:58:00:ff:01:02",
        ] {
            assert_eq!(text.parse::<Mac>(), Err(MacError(text.to_owned())));
        }
    }
}
