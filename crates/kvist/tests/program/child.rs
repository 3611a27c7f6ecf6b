//! The program as a child process.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Far more than anything here takes.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The program with an environment that says nothing to it.
pub fn kvist(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvist"));
    std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("KVIST_")).for_each(|(name, _)| {
        command.env_remove(name);
    });
    // Nobody's own models, and nothing is left behind.
    command.env("HF_HUB_CACHE", "/nowhere/hub").env("KVIST_KV_DISK", "off").args(args);
    command
}

pub fn output(args: &[&str]) -> (String, String, Option<i32>) {
    texts(kvist(args).stdin(Stdio::null()).output().unwrap())
}

/// Runs to the end with this on standard input.
pub fn piped(args: &[&str], input: &str) -> (String, String, Option<i32>) {
    let mut command = kvist(args);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    texts(child.wait_with_output().unwrap())
}

pub fn texts(output: Output) -> (String, String, Option<i32>) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(output.stdout), text(output.stderr), output.status.code())
}

/// A server on a free port.
pub fn serve(args: &[&str]) -> Command {
    kvist(&[&["serve", "--port", "0", "--kv-ram", "64MiB", "--threads", "2"], args].concat())
}

/// A running `kvist serve`; killed when dropped.
pub struct Served {
    pub child: Child,
    stdout: BufReader<ChildStdout>,
    pub address: SocketAddr,
    /// The start-up page.
    pub page: String,
}

impl Served {
    /// Starts on a free port and waits until it is ready.
    pub fn start(args: &[&str]) -> Served {
        Served::of(serve(args))
    }

    /// Runs a command of [`serve`] and waits until it is ready.
    pub fn of(mut command: Command) -> Served {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut page = String::new();
        while !page.contains("\n  curl ") {
            if stdout.read_line(&mut page).unwrap() == 0 {
                let mut errors = String::new();
                child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
                panic!("it ended: {page}\n{errors}");
            }
        }
        let url = page.split("http://").nth(1).and_then(|rest| rest.split_whitespace().next()).unwrap();
        let address = url.parse().unwrap_or_else(|_| panic!("no address in {page}"));
        Served { child, stdout, address, page }
    }

    /// Sends a request and leaves the connection open for the answer.
    pub fn send(&self, method: &str, path: &str, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        stream
    }

    /// The whole answer, with its head.
    pub fn ask(&self, method: &str, path: &str, body: &str) -> String {
        let mut answer = String::new();
        self.send(method, path, body).read_to_string(&mut answer).unwrap();
        answer
    }

    pub fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([format!("-{name}"), id]).status().unwrap().success());
    }

    /// Waits for the end: exit code and what else was written to (standard output, standard error).
    pub fn end(&mut self) -> (Option<i32>, String, String) {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        };
        let (mut out, mut err) = (String::new(), String::new());
        self.stdout.read_to_string(&mut out).unwrap();
        self.child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        (status.code(), out, err)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
