//! A name server for one proxy, which says of every name what its test has it say.

use std::collections::HashSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};

use tempfile::TempDir;

/// What is said of every name.
#[derive(Clone, Debug)]
pub enum Says {
    /// It leads to these addresses, and nobody may remember that.
    To(Vec<IpAddr>),
    /// There is the name, and no address (NODATA).
    NoAddress,
    /// There is no such name (NXDOMAIN).
    NoName,
    /// It cannot tell (SERVFAIL).
    Failure,
    /// Nothing at all.
    Silence,
}

/// Who asked, and the number of their question.
type Asked = HashSet<(SocketAddr, [u8; 2])>;

/// See the module. It ends with its value.
pub struct NameServer {
    address: Ipv4Addr,
    says: Arc<Mutex<Says>>,
    asked: Arc<Mutex<Asked>>,
    folder: TempDir,
}

impl NameServer {
    /// Listens at an address of this machine that nobody else has.
    pub fn start(says: Says) -> Self {
        let (address, socket) = loop {
            let address = Ipv4Addr::new(127, 54, fastrand::u8(..), fastrand::u8(1..255));
            match UdpSocket::bind((address, 53)) {
                Ok(socket) => break (address, socket),
                Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {}
                Err(error) => panic!("port 53 takes root: {error}"),
            }
        };
        let folder = TempDir::new().expect("a temporary directory");
        let file = folder.path().join("resolv.conf");
        fs::write(file, format!("nameserver {address}\n")).expect("a writable folder");
        let server = Self {
            address,
            says: Arc::new(Mutex::new(says)),
            asked: Arc::default(),
            folder,
        };
        let (says, asked) = (Arc::downgrade(&server.says), Arc::clone(&server.asked));
        std::thread::spawn(move || {
            let mut question = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut question) {
                let Some(says) = says.upgrade() else { return };
                let says = says.lock().expect("no panic").clone();
                let question = &question[..length];
                if let Some(number) = question.first_chunk() {
                    asked.lock().expect("no panic").insert((from, *number));
                }
                if let Some(answer) = answer(question, &says) {
                    let _gone = socket.send_to(&answer, from);
                }
            }
        });
        server
    }

    /// What is said from now on.
    pub fn say(&self, says: Says) {
        *self.says.lock().expect("no panic") = says;
    }

    /// How many questions there were; one that is put again is one.
    pub fn asked(&self) -> usize {
        self.asked.lock().expect("no panic").len()
    }

    /// Where it listens, at port 53.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// The script that has a proxy ask it; see `Builder::mount`.
    pub fn mount(&self) -> String {
        let file = self.folder.path().join("resolv.conf");
        format!("mount --bind {} /etc/resolv.conf", file.display())
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.say(Says::Silence);
        // The thread looks whether it is wanted when it is asked.
        let asking = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0));
        let _gone = asking.map(|asking| asking.send_to(b"", (self.address, 53)));
    }
}

/// An answer of RFC 1035, 4.1; none where nothing is said, or what came is no question.
fn answer(question: &[u8], says: &Says) -> Option<Vec<u8>> {
    const HEADER: usize = 12;
    let name = question.get(HEADER..)?.iter().position(|byte| *byte == 0)?;
    let end = HEADER + name + 5;
    let asked = question.get(HEADER..end)?;
    let kind = u16::from_be_bytes([asked[name + 1], asked[name + 2]]);
    let mut addresses = Vec::new();
    let code = match says {
        Says::Silence => return None,
        Says::To(all) => {
            addresses.extend(all.iter().filter(|address| match address {
                IpAddr::V4(_) => kind == 1,
                IpAddr::V6(_) => kind == 28,
            }));
            0
        }
        Says::NoAddress => 0,
        Says::Failure => 2,
        Says::NoName => 3,
    };
    let mut answer = question[..2].to_vec();
    // An answer, recursion wanted and to be had; one question, so many answers.
    answer.extend([0x81, 0x80 | code, 0, 1, 0]);
    answer.push(u8::try_from(addresses.len()).expect("few addresses"));
    answer.extend([0; 4]);
    answer.extend(asked);
    for address in addresses {
        let bytes = match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        // The name of the question, of its kind, in the Internet, for 0 seconds.
        answer.extend([0xc0, 12]);
        answer.extend(kind.to_be_bytes());
        answer.extend([0, 1, 0, 0, 0, 0, 0]);
        answer.push(u8::try_from(bytes.len()).expect("an address"));
        answer.extend(bytes);
    }
    Some(answer)
}
