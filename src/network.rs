//! Which network an address belongs to: from a MaxMind-format file or a CSV, or the block around it where there is neither.
//!
//! Rows carry the answer of the day on which they arrived, so that a newer file does not change last month.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use crate::error::{At, Error, Result};

/// What is known of networks.
#[derive(Default)]
pub struct Networks {
    databases: Vec<maxminddb::Reader<Vec<u8>>>,
    /// Operator's list by prefix length, longest last: network bits (IPv4 mapped into IPv6) → ASN, country.
    listed: BTreeMap<u8, BTreeMap<u128, Listed>>,
}

#[derive(Clone, Debug, serde::Deserialize)]
struct Listed {
    network: String,
    #[serde(default)]
    asn: Option<String>,
    #[serde(default)]
    country: Option<String>,
}

/// A network and, where known, its country.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// `AS64500`, or the block around the address: `198.51.100.0/24`, `2001:db8:1::/48`.
    pub name: Option<String>,
    pub country: Option<String>,
}

impl Networks {
    /// Opens `.mmdb` files (ASN, Country or City) and `.csv` files with the columns network, asn, country.
    ///
    /// # Errors
    /// Names the file and what is wrong in it.
    pub fn open(paths: &[impl AsRef<Path>]) -> Result<Self> {
        let mut networks = Self::default();
        for path in paths.iter().map(AsRef::as_ref) {
            let place = || format!("networks file {}", path.display());
            if path.extension().is_some_and(|extension| extension == "mmdb") {
                networks.databases.push(maxminddb::Reader::open_readfile(path).user_at(place)?);
                continue;
            }
            let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_path(path).user_at(place)?;
            if !reader.headers().user_at(place)?.iter().any(|name| name == "network") {
                return Err(Error::user(format!("{}: the first line must name the columns: network,asn,country", place())));
            }
            for (number, row) in reader.deserialize::<Listed>().enumerate() {
                let row = row.map_err(|error| Error::user(format!("{}: row {}: {error}; wanted: network,asn,country", place(), number + 1)))?;
                networks.list(row).map_err(|message| Error::user(format!("{}: row {}: {message}", place(), number + 1)))?;
            }
        }
        Ok(networks)
    }

    /// Adds one network, given as JSON with network, asn and country; what is stated later counts.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn state(&mut self, entry: &str) -> Result<(), String> {
        self.list(serde_json::from_str(entry).map_err(|error| format!("{error}; wanted: network, asn, country"))?)
    }

    fn list(&mut self, row: Listed) -> Result<(), String> {
        let network: ipnet::IpNet = row.network.parse().map_err(|_| format!("`{}` is no network such as 203.0.113.0/24", row.network))?;
        let asn = row.asn.as_deref().map(|asn| asn.trim_start_matches("AS")).filter(|asn| !asn.is_empty());
        if asn.is_some_and(|asn| asn.parse::<u32>().is_err()) {
            return Err(format!("`{}` is no AS number", asn.unwrap_or_default()));
        }
        let row = Listed { asn: asn.map(|asn| format!("AS{asn}")), ..row };
        let (bits, length) = bits_of(network.addr(), network.prefix_len());
        self.listed.entry(length).or_default().insert(masked(bits, length), row);
        Ok(())
    }

    /// Whether any file says more than the block around an address.
    pub fn is_empty(&self) -> bool {
        self.databases.is_empty() && self.listed.is_empty()
    }

    /// The network of an address as a log spells it. Anonymised logs have leading zeros, Azure masks the last part with
    /// `***`: both still have a block.
    pub fn of(&self, address: &str) -> Network {
        // Dual-stack hosts write IPv4 as `::ffff:203.0.113.9`.
        let address = address.strip_prefix("::ffff:").filter(|rest| rest.contains('.')).unwrap_or(address);
        let parsed = (!self.is_empty()).then(|| address.parse::<IpAddr>().ok()).flatten();
        let mut found = Network::default();
        if let Some(ip) = parsed {
            let (bits, _) = bits_of(ip, 0);
            let listed = self.listed.iter().rev().find_map(|(length, networks)| networks.get(&masked(bits, *length)));
            if let Some(listed) = listed {
                found.name.clone_from(&listed.asn);
                found.country.clone_from(&listed.country);
            }
            for database in &self.databases {
                let Ok(entry) = database.lookup(ip) else { continue };
                if found.name.is_none()
                    && let Ok(Some(asn)) = entry.decode::<maxminddb::geoip2::Asn>()
                {
                    found.name = asn.autonomous_system_number.map(|asn| format!("AS{asn}"));
                }
                if found.country.is_none()
                    && let Ok(Some(country)) = entry.decode::<maxminddb::geoip2::Country>()
                {
                    found.country = country.country.iso_code.map(str::to_owned);
                }
            }
        }
        found.name = found.name.or_else(|| block(address));
        found
    }
}

/// The /24 or /48 around an address, textually: it must also work for addresses that no parser takes.
fn block(address: &str) -> Option<String> {
    if address.contains(':') {
        let ip: std::net::Ipv6Addr = address.parse().ok()?;
        let s = ip.segments();
        return Some(format!("{:x}:{:x}:{:x}::/48", s[0], s[1], s[2]));
    }
    let (front, last) = address.rsplit_once('.')?;
    let number = |part: &str| part.len() <= 3 && !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let masked = !last.is_empty() && last.bytes().all(|b| b == b'*' || b.is_ascii_digit());
    (front.split('.').count() == 3 && front.split('.').all(number) && masked).then(|| format!("{front}.0/24"))
}

fn bits_of(ip: IpAddr, length: u8) -> (u128, u8) {
    match ip {
        IpAddr::V4(v4) => (u128::from(v4.to_ipv6_mapped()), length + 96),
        IpAddr::V6(v6) => (u128::from(v6), length),
    }
}

fn masked(bits: u128, length: u8) -> u128 {
    bits & u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maxmind_files_give_system_and_country() {
        let networks = Networks::open(&["tests/it/data/asn.mmdb", "tests/it/data/country.mmdb"]).unwrap();
        assert_eq!(networks.of("203.0.113.77"), Network { name: Some("AS64500".into()), country: Some("NL".into()) });
        assert_eq!(networks.of("198.51.100.7"), Network { name: Some("198.51.100.0/24".into()), country: None });
        assert!(Networks::open(&["Cargo.mmdb"]).is_err());
    }

    #[test]
    fn the_longest_listed_network_wins_and_the_block_is_the_fallback() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("networks.csv");
        std::fs::write(&file, "network,asn,country\n203.0.113.0/24,64500,NL\n203.0.113.128/25,AS64501,\n2001:db8::/32,64502,FR\n").unwrap();
        let networks = Networks::open(&[&file]).unwrap();
        let name = |address: &str| networks.of(address).name;
        assert_eq!(networks.of("203.0.113.9"), Network { name: Some("AS64500".into()), country: Some("NL".into()) });
        assert_eq!(name("203.0.113.200").as_deref(), Some("AS64501"));
        assert_eq!(name("2001:db8:7::1").as_deref(), Some("AS64502"));
        assert_eq!(name("198.51.100.7").as_deref(), Some("198.51.100.0/24"));
        assert_eq!(name("035.249.253.232").as_deref(), Some("035.249.253.0/24"), "leading zeros");
        assert_eq!(name("81.2.69.***").as_deref(), Some("81.2.69.0/24"), "masked by Azure");
        assert_eq!(name("2001:dba:7::1").as_deref(), Some("2001:dba:7::/48"));
        assert_eq!(name("::ffff:203.0.113.9").as_deref(), Some("AS64500"));
        assert_eq!(name("AWS Internal"), None);
        std::fs::write(&file, "network,asn\nnowhere,1\n").unwrap();
        assert!(Networks::open(&[&file]).err().unwrap().to_string().contains("row 1"));
        std::fs::write(&file, "203.0.113.0/24,1,NL\n").unwrap();
        assert!(Networks::open(&[&file]).err().unwrap().to_string().contains("name the columns"));
    }
}
