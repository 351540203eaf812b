//! What the guests do that are measured. They tell when they begin and what it took by their own clock, and nobody types: so runs can
//! be alike.

/// Reads the clock in nanoseconds. Where QEMU counts instructions, an instruction is one.
const CLOCK: &str = r#"
now() { set -- $(grep -m1 '^now at' /proc/timer_list); echo $3; }
took() {
    name=$1
    shift
    echo "bench begin $name"
    start=$(now)
    "$@" > /dev/null 2>&1 || echo "bench failed: $name"
    end=$(now)
    echo "bench $name $((end - start))"
}
"#;

/// The first guest goes on once the second answers; that one takes what it is sent.
const MEET: &str = r#"
read address < /sys/class/net/eth0/address
if [ "${address##*:}" = 02 ]; then
    while :; do nc -l -p 5000 > /dev/null; done
fi
until ping -c 1 -W 1 10.0.0.2 > /dev/null; do :; done
sleep 1
"#;

/// What has to be found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Of a guest's disk.
    Disk,
    /// Of a network of two guests.
    Network,
}

/// Requests of the shorter and of the longer round. What starting and ending a program takes is in both.
pub const ROUNDS: [u64; 2] = [500, 1500];
/// Bytes of requests, and how many of them, in a round by the wall's clock.
pub const READS: [(&str, u64, u64); 2] = [("4k", 4096, 4000), ("64k", 65536, 512)];
/// The same of what is sent over the network.
pub const SENT: (u64, u64) = (65536, 256);
/// Round trips by the wall's clock.
pub const TRIPS: u64 = 1000;
/// Bytes of the disk.
pub const DISK: u64 = 32 << 20;

/// Bytes of a ping's content: with 42 bytes of headers a frame of 60 bytes, and one of 1,514.
const FRAMES: [(&str, u64); 2] = [("small", 18), ("large", 1472)];

impl Work {
    /// Guests that do it.
    pub const fn guests(self) -> usize {
        match self {
            Self::Disk => 1,
            Self::Network => 2,
        }
    }

    /// The script of each of them in which requests are counted.
    pub fn counted(self) -> String {
        let [short, long] = ROUNDS;
        let mut lines = Vec::new();
        match self {
            Self::Disk => {
                let reads =
                    |count| format!("read-{count} dd if=/dev/vda of=/dev/null bs=4k count={count} iflag=direct");
                let writes =
                    |count| format!("write-{count} dd if=/dev/zero of=/dev/vda bs=4k count={count} oflag=direct");
                // Whatever is there only the first time isn't counted.
                lines.extend([reads(long), reads(short), reads(long), writes(long), writes(short), writes(long)]);
            }
            Self::Network => {
                for (name, bytes) in FRAMES {
                    let pings = |count| format!("{name}-{count} ping -A -q -c {count} -s {bytes} 10.0.0.2");
                    lines.extend([pings(short), pings(short), pings(long)]);
                }
            }
        }
        self.script(&lines)
    }

    /// The same in which it is timed.
    pub fn timed(self) -> String {
        let mut lines = Vec::new();
        match self {
            Self::Disk => {
                for (name, bytes, count) in READS {
                    let line = format!("read-{name} dd if=/dev/vda of=/dev/null bs={bytes} count={count} iflag=direct");
                    lines.extend([line.clone(), line]);
                }
            }
            Self::Network => {
                let (bytes, count) = SENT;
                let line = format!("sent sh -c 'dd if=/dev/zero bs={bytes} count={count} | nc 10.0.0.2 5000'");
                lines.extend([line.clone(), line]);
                lines.push(format!("trips ping -A -q -c {TRIPS} -s 18 10.0.0.2"));
            }
        }
        self.script(&lines)
    }

    fn script(self, lines: &[String]) -> String {
        let meet = if self == Self::Network { MEET } else { "" };
        let lines: String = lines.iter().map(|line| format!("took {line}\n")).collect();
        format!("{CLOCK}{meet}{lines}echo bench end\nsleep 1000\n")
    }
}
