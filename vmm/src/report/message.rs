//! What a host can ask of a guest, and what a guest can say.

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use super::frame::{FrameError, frame};
use crate::encoding::{FieldError, Reader, Writer};
use crate::exchange::Command;
use crate::sessions::Size;

/// Something that the guest is to do. The host numbers its requests, and what comes of one bears its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Of the host's choosing, not used again while the request is under way.
    pub number: u32,
    /// What is to be done.
    pub what: What,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Nothing: whoever answers is alive, and has read everything before this.
    Ping,
    /// Give a network interface its address, or none, and take it up.
    Network {
        /// The interface, `lo` or `eth0`.
        interface: String,
        /// Its address and the length of its network's prefix.
        address: Option<(Ipv4Addr, u8)>,
    },
    /// Make the name of the machine what it says.
    HostName(OsString),
    /// Mount a file system; its directory is made if it is missing.
    Mount(MountRequest),
    /// Show parts of a file system over parts of a directory; nothing of it is seen elsewhere.
    Cover {
        /// The file system. It is mounted while this is done; the node of its disk is gone afterwards.
        with: MountRequest,
        /// The parts, each there in both: a directory over a directory, a file over a file.
        names: Vec<OsString>,
        /// The directory.
        over: PathBuf,
    },
    /// Take a file system away again. The request fails if it is in use.
    Unmount(PathBuf),
    /// Make this mounted directory the root, with /dev, /proc and /sys moved into it.
    SwitchRoot(PathBuf),
    /// Set the clock, in nanoseconds since 1970.
    SetClock {
        /// Since 1970-01-01T00:00:00Z.
        nanoseconds: u64,
    },
    /// Write a file, through a temporary one beside it; its directory is made if it is missing.
    WriteFile {
        /// Where.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// Its content.
        content: Vec<u8>,
    },
    /// Run a program. The answer, [`Report::Ended`], comes when it ends.
    Run(RunRequest),
    /// Send a signal to the process group of the program that runs under this number.
    Kill {
        /// The number of its request.
        run: u32,
        /// The signal's number.
        signal: u32,
    },
    /// Give a program its standard input, which ends with it: one whose streams are [`Streams::Fed`].
    Input {
        /// The number of its request.
        run: u32,
        /// The input.
        bytes: Vec<u8>,
    },
    /// Give a program of a session a piece of its input; nothing is its end. [`Report::Taken`] says when it was taken, and
    /// nothing answers it at once.
    Feed {
        /// The number of its request.
        run: u32,
        /// The piece.
        bytes: Vec<u8>,
    },
    /// Let a program of a session say so many bytes more than [`crate::sessions::WINDOW`]. Nothing answers it.
    Allow {
        /// The number of its request.
        run: u32,
        /// How many more.
        bytes: u32,
    },
    /// Give the terminal of a session a size. It is done even when the session has ended.
    Resize {
        /// The number of its request.
        run: u32,
        /// The size.
        size: Size,
    },
    /// End a session: what its program says is not sent any more, and it is killed. Its own end is told as that of any other;
    /// nothing answers this.
    EndSession {
        /// The number of its request.
        run: u32,
    },
    /// Connect to a TCP port, again and again, until what it says first begins as expected.
    AwaitBanner {
        /// Where.
        address: Ipv4Addr,
        /// The port.
        port: u16,
        /// Its first words, such as `SSH-`. Nothing: the connection is enough.
        banner: Vec<u8>,
        /// How long it may take, in milliseconds.
        milliseconds: u32,
    },
    /// How much room a mounted file system has.
    Space(PathBuf),
    /// Write back what is in memory, unmount what can be, and power off. The answer comes before the power is gone.
    PowerOff,
}

/// A mount(2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountRequest {
    /// A tag, a share or a directory. `serial:NAME` is the block device with that serial number, which the agent looks up;
    /// `serial:NAME:1` is its first partition.
    pub source: OsString,
    /// Where.
    pub target: PathBuf,
    /// The kind of file system, as in /proc/filesystems. `bind` binds a directory.
    pub kind: String,
    /// The file system's own options.
    pub options: OsString,
    /// Nothing may be written.
    pub read_only: bool,
    /// Nothing may be executed. Device nodes and set-id bits never count.
    pub no_programs: bool,
}

/// A program to be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunRequest {
    /// What, in the message itself, or in a file that the guest sees (of the form of [`Command::encode`]).
    pub command: Result<Command, PathBuf>,
    /// As which user and group; no other groups.
    pub user: Option<(u32, u32)>,
    /// What becomes of its output.
    pub streams: Streams,
    /// Kill what is left of its process group when it has ended.
    pub alone: bool,
}

/// What becomes of a program's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Streams {
    /// Standard output and standard error apart.
    Apart,
    /// Both as one stream, in their order.
    Together,
    /// The machine's console has both, and is the standard input.
    Console,
    /// Both as one stream; the standard input comes by [`What::Input`].
    Fed,
    /// Of a session: apart, or a terminal of this size has both and the input, which comes by [`What::Feed`]. No more is sent
    /// than is allowed ([`What::Allow`]).
    Session(Option<Size>),
}

/// What a guest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// The agent runs, and what its image asks for at the start is done.
    Ready {
        /// The release of the kernel, as of uname(2).
        kernel: String,
        /// How long the kernel had run when the agent began, in nanoseconds of the guest's.
        began: u64,
        /// How long it has run now.
        up: u64,
    },
    /// For people: what is being done.
    Progress(String),
    /// A request is done.
    Done {
        /// Its number.
        number: u32,
    },
    /// A request could not be done.
    Failed {
        /// Its number.
        number: u32,
        /// What was being done, to what, and what the kernel said.
        why: String,
    },
    /// What a program wrote. Each run's pieces are in order.
    Output {
        /// The number of the run's request.
        number: u32,
        /// It was written to standard error.
        error: bool,
        /// As it was written.
        bytes: Vec<u8>,
    },
    /// A program of a session has taken so much of its input, or never will.
    Taken {
        /// The number of the run's request.
        number: u32,
        /// How many bytes.
        bytes: u32,
    },
    /// A program has ended, and all of its output was sent.
    Ended {
        /// The number of the run's request.
        number: u32,
        /// How.
        ending: Ending,
    },
    /// A port answered as expected.
    Banner {
        /// The number of the request.
        number: u32,
        /// What it said, at most 256 bytes.
        banner: Vec<u8>,
    },
    /// How much room a file system has.
    Space {
        /// The number of the request.
        number: u32,
        /// All of it, in bytes.
        total: u64,
        /// What is free, in bytes.
        free: u64,
    },
    /// The agent cannot go on, and powers off.
    Died {
        /// Why.
        why: String,
    },
}

/// How a program in a guest ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// By itself, with this status.
    Exited(u8),
    /// By this signal.
    Signalled(u32),
    /// It was never started.
    NotStarted(String),
    /// The guest went silent or away before it told a status: neither success nor any number. A guest cannot send this.
    NoStatus(String),
}

impl Request {
    /// As a frame.
    ///
    /// # Errors
    /// If it is too long.
    pub fn encode(&self) -> Result<Vec<u8>, FrameError> {
        let mut f = Writer::new();
        f.u32(self.number);
        match &self.what {
            What::Ping => f.u8(0),
            What::Network { interface, address } => {
                f.u8(1).bytes(interface).flag(address.is_some());
                let (address, prefix) = address.unwrap_or((Ipv4Addr::UNSPECIFIED, 0));
                f.u32(address.to_bits()).u8(prefix)
            }
            What::HostName(name) => f.u8(2).name(name),
            What::Mount(mount) => mount.write(f.u8(3)),
            What::Unmount(path) => f.u8(4).name(path),
            What::SwitchRoot(path) => f.u8(5).name(path),
            What::SetClock { nanoseconds } => f.u8(6).u64(*nanoseconds),
            What::WriteFile { path, mode, content } => f.u8(7).name(path).u32(*mode).bytes(content),
            What::Run(run) => {
                f.u8(8);
                match &run.command {
                    Ok(command) => command.write(f.flag(true)),
                    Err(file) => drop(f.flag(false).name(file)),
                }
                let (user, group) = run.user.unwrap_or_default();
                f.flag(run.user.is_some()).u32(user).u32(group);
                f.u8(match run.streams {
                    Streams::Apart => 0,
                    Streams::Together => 1,
                    Streams::Console => 2,
                    Streams::Fed => 3,
                    Streams::Session(None) => 4,
                    Streams::Session(Some(_)) => 5,
                });
                if let Streams::Session(Some(size)) = run.streams {
                    size.write(&mut f);
                }
                f.flag(run.alone)
            }
            What::Kill { run, signal } => f.u8(9).u32(*run).u32(*signal),
            What::AwaitBanner { address, port, banner, milliseconds } => {
                f.u8(10).u32(address.to_bits()).u32((*port).into()).bytes(banner).u32(*milliseconds)
            }
            What::Space(path) => f.u8(11).name(path),
            What::PowerOff => f.u8(12),
            What::Cover { with, names, over } => {
                with.write(f.u8(13));
                f.list(names, |f, name| _ = f.name(name)).name(over)
            }
            What::Input { run, bytes } => f.u8(14).u32(*run).bytes(bytes),
            What::Feed { run, bytes } => f.u8(15).u32(*run).bytes(bytes),
            What::Allow { run, bytes } => f.u8(16).u32(*run).u32(*bytes),
            What::Resize { run, size } => size.write(f.u8(17).u32(*run)),
            What::EndSession { run } => f.u8(18).u32(*run),
        };
        frame(&f.finish())
    }

    /// From the message of a frame.
    ///
    /// # Errors
    /// If it is none.
    pub fn decode(message: &[u8]) -> Result<Self, FrameError> {
        let mut f = Reader::new(message);
        let number = f.u32("request's number")?;
        let what = match f.u8("request")? {
            0 => What::Ping,
            1 => {
                let interface = f.text("interface")?.to_owned();
                let given = f.flag("address given")?;
                let address = (Ipv4Addr::from_bits(f.u32("address")?), f.u8("prefix")?);
                What::Network { interface, address: given.then_some(address) }
            }
            2 => What::HostName(f.name("host name")?.to_owned()),
            3 => What::Mount(MountRequest::read(&mut f)?),
            4 => What::Unmount(f.name("path")?.into()),
            5 => What::SwitchRoot(f.name("path")?.into()),
            6 => What::SetClock { nanoseconds: f.u64("clock")? },
            7 => What::WriteFile {
                path: f.name("path")?.into(),
                mode: f.u32("mode")?,
                content: f.bytes("content")?.to_vec(),
            },
            8 => What::Run(run(&mut f)?),
            9 => What::Kill { run: f.u32("run")?, signal: f.u32("signal")? },
            10 => What::AwaitBanner {
                address: Ipv4Addr::from_bits(f.u32("address")?),
                port: {
                    let port = f.u32("port")?;
                    u16::try_from(port).map_err(|_| FieldError::Unknown { field: "port", value: port.into() })?
                },
                banner: f.bytes("banner")?.to_vec(),
                milliseconds: f.u32("milliseconds")?,
            },
            11 => What::Space(f.name("path")?.into()),
            12 => What::PowerOff,
            13 => What::Cover {
                with: MountRequest::read(&mut f)?,
                names: f.list("parts", |f| Ok(f.name("part")?.to_owned()))?,
                over: f.name("directory")?.into(),
            },
            14 => What::Input { run: f.u32("run")?, bytes: f.bytes("input")?.to_vec() },
            15 => What::Feed { run: f.u32("run")?, bytes: f.bytes("input")?.to_vec() },
            16 => What::Allow { run: f.u32("run")?, bytes: f.u32("bytes")? },
            17 => What::Resize { run: f.u32("run")?, size: Size::read(&mut f)? },
            18 => What::EndSession { run: f.u32("run")? },
            other => return Err(FieldError::Unknown { field: "request", value: other.into() }.into()),
        };
        f.end()?;
        Ok(Self { number, what })
    }
}

impl MountRequest {
    fn write<'a>(&self, f: &'a mut Writer) -> &'a mut Writer {
        f.name(&self.source).name(&self.target).bytes(&self.kind).name(&self.options);
        f.flag(self.read_only).flag(self.no_programs)
    }

    fn read(f: &mut Reader<'_>) -> Result<Self, FieldError> {
        Ok(Self {
            source: f.name("source")?.to_owned(),
            target: f.name("target")?.into(),
            kind: f.text("kind")?.to_owned(),
            options: f.name("options")?.to_owned(),
            read_only: f.flag("read only")?,
            no_programs: f.flag("no programs")?,
        })
    }
}

fn run(f: &mut Reader<'_>) -> Result<RunRequest, FieldError> {
    let command =
        if f.flag("command in the message")? { Ok(Command::read(f)?) } else { Err(f.name("command's file")?.into()) };
    let given = f.flag("user given")?;
    let user = (f.u32("user")?, f.u32("group")?);
    let streams = match f.u8("streams")? {
        0 => Streams::Apart,
        1 => Streams::Together,
        2 => Streams::Console,
        3 => Streams::Fed,
        4 => Streams::Session(None),
        5 => Streams::Session(Some(Size::read(f)?)),
        other => return Err(FieldError::Unknown { field: "streams", value: other.into() }),
    };
    Ok(RunRequest { command, user: given.then_some(user), streams, alone: f.flag("alone")? })
}

impl Report {
    /// The number of the request that it is about.
    pub fn number(&self) -> Option<u32> {
        match self {
            Self::Done { number }
            | Self::Failed { number, .. }
            | Self::Output { number, .. }
            | Self::Taken { number, .. }
            | Self::Ended { number, .. }
            | Self::Banner { number, .. }
            | Self::Space { number, .. } => Some(*number),
            Self::Ready { .. } | Self::Progress(_) | Self::Died { .. } => None,
        }
    }

    /// As a frame.
    ///
    /// # Errors
    /// If it is too long.
    pub fn encode(&self) -> Result<Vec<u8>, FrameError> {
        let mut f = Writer::new();
        match self {
            Self::Ready { kernel, began, up } => f.u8(0).bytes(kernel).u64(*began).u64(*up),
            Self::Progress(text) => f.u8(1).bytes(text),
            Self::Done { number } => f.u8(2).u32(*number),
            Self::Failed { number, why } => f.u8(3).u32(*number).bytes(why),
            Self::Output { number, error, bytes } => f.u8(4).u32(*number).flag(*error).bytes(bytes),
            Self::Ended { number, ending } => {
                f.u8(5).u32(*number);
                match ending {
                    Ending::Exited(status) => f.u8(0).u32((*status).into()),
                    Ending::Signalled(signal) => f.u8(1).u32(*signal),
                    Ending::NotStarted(why) => f.u8(2).bytes(why),
                    Ending::NoStatus(why) => f.u8(3).bytes(why),
                }
            }
            Self::Banner { number, banner } => f.u8(6).u32(*number).bytes(banner),
            Self::Space { number, total, free } => f.u8(7).u32(*number).u64(*total).u64(*free),
            Self::Died { why } => f.u8(8).bytes(why),
            Self::Taken { number, bytes } => f.u8(9).u32(*number).u32(*bytes),
        };
        frame(&f.finish())
    }

    /// From the message of a frame. What a guest says for people is made text, whatever it was.
    ///
    /// # Errors
    /// If it is none.
    pub fn decode(message: &[u8]) -> Result<Self, FrameError> {
        let mut f = Reader::new(message);
        let words = |f: &mut Reader<'_>| Ok::<_, FieldError>(String::from_utf8_lossy(f.bytes("text")?).into_owned());
        let report = match f.u8("report")? {
            0 => Self::Ready {
                kernel: words(&mut f)?,
                began: f.u64("time of beginning")?,
                up: f.u64("time since start")?,
            },
            1 => Self::Progress(words(&mut f)?),
            2 => Self::Done { number: f.u32("number")? },
            3 => Self::Failed { number: f.u32("number")?, why: words(&mut f)? },
            4 => Self::Output {
                number: f.u32("number")?,
                error: f.flag("standard error")?,
                bytes: f.bytes("output")?.to_vec(),
            },
            5 => {
                let number = f.u32("number")?;
                let ending = match f.u8("ending")? {
                    0 => {
                        let status = f.u32("exit status")?;
                        let unknown = FieldError::Unknown { field: "exit status", value: status.into() };
                        Ending::Exited(u8::try_from(status).map_err(|_| unknown)?)
                    }
                    1 => Ending::Signalled(f.u32("signal")?),
                    2 => Ending::NotStarted(words(&mut f)?),
                    other => return Err(FieldError::Unknown { field: "ending", value: other.into() }.into()),
                };
                Self::Ended { number, ending }
            }
            6 => Self::Banner { number: f.u32("number")?, banner: f.bytes("banner")?.to_vec() },
            7 => Self::Space { number: f.u32("number")?, total: f.u64("total")?, free: f.u64("free")? },
            8 => Self::Died { why: words(&mut f)? },
            9 => Self::Taken { number: f.u32("number")?, bytes: f.u32("bytes")? },
            other => return Err(FieldError::Unknown { field: "report", value: other.into() }.into()),
        };
        f.end()?;
        Ok(report)
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame::Frames;
    use super::*;
    use crate::exchange::tests::{command, value};
    use proptest::prelude::*;

    fn streams() -> impl Strategy<Value = Streams> {
        prop_oneof![
            Just(Streams::Apart),
            Just(Streams::Together),
            Just(Streams::Console),
            Just(Streams::Fed),
            prop::option::of(size()).prop_map(Streams::Session),
        ]
    }

    fn size() -> impl Strategy<Value = Size> {
        any::<(u16, u16)>().prop_map(|(rows, columns)| Size { rows, columns })
    }

    fn path() -> impl Strategy<Value = PathBuf> {
        value().prop_map(PathBuf::from)
    }

    fn mount() -> impl Strategy<Value = MountRequest> {
        (value(), path(), any::<String>(), value(), any::<bool>(), any::<bool>()).prop_map(
            |(source, target, kind, options, read_only, no_programs)| MountRequest {
                source,
                target,
                kind,
                options,
                read_only,
                no_programs,
            },
        )
    }

    fn what() -> impl Strategy<Value = What> {
        let address = any::<u32>().prop_map(Ipv4Addr::from_bits);
        prop_oneof![
            Just(What::Ping),
            (any::<String>(), prop::option::of((address.clone(), any::<u8>())))
                .prop_map(|(interface, address)| What::Network { interface, address }),
            value().prop_map(What::HostName),
            mount().prop_map(What::Mount),
            (mount(), prop::collection::vec(value(), 0..5), path()).prop_map(|(with, names, over)| What::Cover {
                with,
                names,
                over
            }),
            path().prop_map(What::Unmount),
            (any::<u32>(), any::<Vec<u8>>()).prop_map(|(run, bytes)| What::Input { run, bytes }),
            (any::<u32>(), any::<Vec<u8>>()).prop_map(|(run, bytes)| What::Feed { run, bytes }),
            any::<(u32, u32)>().prop_map(|(run, bytes)| What::Allow { run, bytes }),
            (any::<u32>(), size()).prop_map(|(run, size)| What::Resize { run, size }),
            any::<u32>().prop_map(|run| What::EndSession { run }),
            path().prop_map(What::SwitchRoot),
            any::<u64>().prop_map(|nanoseconds| What::SetClock { nanoseconds }),
            (path(), any::<u32>(), any::<Vec<u8>>()).prop_map(|(path, mode, content)| What::WriteFile {
                path,
                mode,
                content
            }),
            (
                prop_oneof![command().prop_map(Ok), path().prop_map(Err)],
                any::<Option<(u32, u32)>>(),
                streams(),
                any::<bool>()
            )
                .prop_map(|(command, user, streams, alone)| {
                    What::Run(RunRequest { command, user, streams, alone })
                }),
            (any::<u32>(), any::<u32>()).prop_map(|(run, signal)| What::Kill { run, signal }),
            (address, any::<u16>(), any::<Vec<u8>>(), any::<u32>()).prop_map(
                |(address, port, banner, milliseconds)| What::AwaitBanner { address, port, banner, milliseconds }
            ),
            path().prop_map(What::Space),
            Just(What::PowerOff),
        ]
    }

    fn report() -> impl Strategy<Value = Report> {
        let ending = prop_oneof![
            any::<u8>().prop_map(Ending::Exited),
            any::<u32>().prop_map(Ending::Signalled),
            any::<String>().prop_map(Ending::NotStarted),
        ];
        let number = any::<u32>();
        prop_oneof![
            (any::<String>(), any::<u64>(), any::<u64>()).prop_map(|(kernel, began, up)| Report::Ready {
                kernel,
                began,
                up
            }),
            any::<String>().prop_map(Report::Progress),
            number.prop_map(|number| Report::Done { number }),
            (number, any::<String>()).prop_map(|(number, why)| Report::Failed { number, why }),
            (number, any::<bool>(), any::<Vec<u8>>()).prop_map(|(number, error, bytes)| Report::Output {
                number,
                error,
                bytes
            }),
            (number, ending).prop_map(|(number, ending)| Report::Ended { number, ending }),
            (number, any::<Vec<u8>>()).prop_map(|(number, banner)| Report::Banner { number, banner }),
            (number, any::<u64>(), any::<u64>()).prop_map(|(number, total, free)| Report::Space {
                number,
                total,
                free
            }),
            any::<String>().prop_map(|why| Report::Died { why }),
            (number, any::<u32>()).prop_map(|(number, bytes)| Report::Taken { number, bytes }),
        ]
    }

    fn message(bytes: &[u8]) -> Vec<u8> {
        let mut frames = Frames::new();
        frames.feed(bytes);
        frames.next_message().unwrap().unwrap()
    }

    proptest! {
        #[test]
        fn requests_arrive_equal(number: u32, what in what()) {
            let request = Request { number, what };
            prop_assert_eq!(Request::decode(&message(&request.encode().unwrap())), Ok(request));
        }

        #[test]
        fn reports_arrive_equal(report in report()) {
            prop_assert_eq!(Report::decode(&message(&report.encode().unwrap())), Ok(report));
        }

        #[test]
        fn foreign_bytes_are_an_error_and_nothing_worse(bytes: Vec<u8>) {
            let _ = Report::decode(&bytes);
            let _ = Request::decode(&bytes);
        }
    }

    #[test]
    fn a_guest_cannot_say_that_it_said_nothing() {
        let report = Report::Ended { number: 1, ending: Ending::NoStatus("so it says".into()) };
        assert!(Report::decode(&message(&report.encode().unwrap())).is_err());
    }
}
