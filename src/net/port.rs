//! Ports: the owner of a port, for the error message of a failed start (Linux only), and free ports for
//! servers that start a moment later.

use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

/// The state of a listening socket in `/proc/net/tcp`.
const LISTEN: &str = "0A";

/// Below the range of ephemeral ports (`net.ipv4.ip_local_port_range`, from 32,768 by default).
const PORTS: Range<u32> = 10_000..32_000;

/// A free port on loopback, for a server that starts later, or again: no socket that asks for any port gets it,
/// and no second caller in this process.
pub fn spare_port() -> u16 {
    static LAST: AtomicU32 = AtomicU32::new(0);
    // Concurrent processes start far from one another.
    let begin = std::process::id().wrapping_mul(997);
    for _ in PORTS {
        let nth = begin.wrapping_add(LAST.fetch_add(1, Ordering::Relaxed));
        let port = PORTS.start + nth % (PORTS.end - PORTS.start);
        let Ok(port) = u16::try_from(port) else { continue };
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    0
}

/// The owner of a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortOwner {
    /// A process that we may inspect.
    Process {
        /// The name, at most 15 bytes (the kernel's limit).
        name: String,
        /// The process id.
        id: u32,
    },
    /// A process that we may not inspect, or in another container: the user id.
    User(u32),
}

impl fmt::Display for PortOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process { name, id } => write!(f, "{name} (process {id})"),
            Self::User(id) => write!(f, "a process of user {id}"),
        }
    }
}

/// The owner of a listening address, if it can be found. Reads `/proc`: blocks for a few milliseconds.
pub fn port_owner(address: SocketAddr) -> Option<PortOwner> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].into_iter().filter_map(|path| fs::read_to_string(path).ok());
    let (inode, user) = tables.into_iter().find_map(|table| listener(&table, address))?;
    process_of(&format!("socket:[{inode}]")).or(Some(PortOwner::User(user)))
}

/// Inode and user of the socket that listens on an address, or on all addresses.
fn listener(table: &str, wanted: SocketAddr) -> Option<(u64, u32)> {
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (local, state, user, inode) = (fields.get(1)?, fields.get(3)?, fields.get(7)?, fields.get(9)?);
        let (ip, port) = local.split_once(':')?;
        let (ip, port) = (parse_ip(ip)?, u16::from_str_radix(port, 16).ok()?);
        let meets = ip == wanted.ip().to_canonical() || ip.is_unspecified() || wanted.ip().is_unspecified();
        (*state == LISTEN && port == wanted.port() && meets).then_some((inode.parse().ok()?, user.parse().ok()?))
    })
}

/// The kernel prints addresses as 32-bit words in its own byte order.
fn parse_ip(hex: &str) -> Option<IpAddr> {
    let mut bytes = Vec::with_capacity(16);
    for at in (0..hex.len()).step_by(8) {
        bytes.extend(u32::from_str_radix(hex.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    }
    match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(four) => Some(Ipv4Addr::from(four).into()),
        Err(_) => Some(IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)).to_canonical()),
    }
}

fn process_of(socket: &str) -> Option<PortOwner> {
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let id: u32 = entry.file_name().to_str()?.parse().ok()?;
        let mut files = fs::read_dir(entry.path().join("fd")).ok()?.flatten();
        files.find(|file| fs::read_link(file.path()).is_ok_and(|to| to.as_os_str() == socket))?;
        let name = fs::read_to_string(entry.path().join("comm")).ok()?;
        Some(PortOwner::Process { name: name.trim().to_owned(), id })
    })
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_found_by_its_address_or_as_one_for_all() {
        for (listens, asked) in
            [("127.0.0.1", "127.0.0.1"), ("[::1]", "[::1]"), ("0.0.0.0", "127.0.0.1"), ("127.0.0.1", "0.0.0.0")]
        {
            let socket = std::net::TcpListener::bind(format!("{listens}:0")).unwrap();
            let port = socket.local_addr().unwrap().port();
            let owner = port_owner(format!("{asked}:{port}").parse().unwrap());
            let Some(PortOwner::Process { id, .. }) = owner else { panic!("{listens}, {asked}: {owner:?}") };
            assert_eq!(id, std::process::id(), "{listens}, {asked}");
        }
    }

    #[test]
    fn a_port_that_nobody_has_has_no_owner() {
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert_eq!(port_owner(address), None);
    }

    #[test]
    fn lines_of_other_states_and_addresses_are_passed_by() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             0: 0100007F:1F90 0200007F:C350 01 00000000:00000000 00:00000000 00000000  33 0 111 1\n\
             1: 0200007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  33 0 222 1\n\
             2: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  34 0 333 1\n";
        // In the byte order of a little-endian kernel.
        if cfg!(target_endian = "little") {
            assert_eq!(listener(table, "127.0.0.1:8080".parse().unwrap()), Some((333, 34)));
        }
        assert_eq!(listener(table, "127.0.0.1:8081".parse().unwrap()), None);
    }
}
