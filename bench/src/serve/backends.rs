//! `bitnetd-bench backends`: the same loads on servers that differ in how they do I/O, started one after the other.
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};

use super::http_path::{Case, Kind, Work, head};
use super::target::TargetArgs;
use super::{Error, exit};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The program `bitnetd` [default: the one beside this]
    #[arg(long)]
    server: Option<PathBuf>,
    /// Socket drivers in turn
    #[arg(long, value_delimiter = ',', default_value = "io_uring,epoll,glommio")]
    io: Vec<String>,
    /// Executors that look for tokens all the time, or sleep: in turn for each driver
    #[arg(long, value_delimiter = ',', default_value = "true")]
    executor_spin: Vec<bool>,
    #[command(flatten)]
    work: Work,
    /// Endpoint, sampling and the like; the address is that of the server that is started
    #[command(flatten)]
    target: TargetArgs,
    /// Further arguments of `bitnetd serve`
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// The exit code is 1 if a request failed.
pub(crate) fn run(args: &Args) -> ExitCode {
    exit("backends", measure(args))
}

const CASES: [Case; 6] = [
    Case { name: "GET /health", clients: 16, kind: Kind::Health },
    Case { name: "1 token, one body", clients: 1, kind: Kind::OneToken },
    Case { name: "1 token, one body", clients: 32, kind: Kind::OneToken },
    Case { name: "streams", clients: 1, kind: Kind::Stream },
    Case { name: "streams", clients: 8, kind: Kind::Stream },
    Case { name: "streams", clients: 32, kind: Kind::Stream },
];

fn measure(args: &Args) -> Result<bool, Error> {
    let mut is_well = true;
    println!("{}", head());
    for io in &args.io {
        for spin in &args.executor_spin {
            let server = Server::start(args, io, *spin)?;
            println!("{io}, executor-spin {spin}");
            let target = args.target.at(&server.url)?.reach()?;
            for case in &CASES {
                is_well &= args.work.show(&target, case)?;
            }
        }
    }
    Ok(is_well)
}

/// A server of our own; dropping it ends it.
struct Server {
    child: Child,
    url: String,
}

impl Server {
    /// Starts one on a free port and waits until it says where it listens.
    fn start(args: &Args, io: &str, spin: bool) -> Result<Self, Error> {
        let beside = || Ok::<_, std::io::Error>(std::env::current_exe()?.with_file_name("bitnetd"));
        let program = args.server.clone().map_or_else(beside, Ok).map_err(Error::Server)?;
        let child = Command::new(program)
            .args(["serve", "--listen", "127.0.0.1:0", "--io", io, "--executor-spin", &spin.to_string()])
            .args(&args.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(Error::Server)?;
        let mut server = Self { child, url: String::new() };
        let mut lines = BufReader::new(server.child.stderr.take().expect("it is piped")).lines();
        let mut last = String::new();
        for line in &mut lines {
            last = line.map_err(Error::Server)?;
            if let Some((_, address)) = last.split_once(" on http://") {
                server.url = format!("http://{}", address.trim());
                // What it says later must not fill the pipe.
                std::thread::spawn(move || lines.for_each(drop));
                return Ok(server);
            }
        }
        Err(Error::ServerEnded(last))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that has ended already needs no end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
