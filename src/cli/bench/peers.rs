//! Peers: other libraries on the same GPU, timed in turns with us.
//!
//! A script runs as a co-process and answers one JSON line a question, so that both sides of a ratio come from the same
//! minute. What it says is checked: a peer that crashes, hangs or prints nonsense is named and left out.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::Duration,
};

use serde_json::{Value, json};

/// The script travels with the program.
const SCRIPT: &str = include_str!("../../../benches/peers/serve.py");
/// So do its kernels in Triton, which the script imports where Triton is there.
const TRITON: &str = include_str!("../../../benches/peers/triton_kernels.py");

/// Something that computes what a case computes.
pub trait Rival {
    /// Its name in tables.
    fn name(&self) -> &str;
    /// Microseconds of one run, in one turn.
    fn turn(&mut self) -> Result<f64, String>;
}

/// A running peer script.
pub struct Peers {
    child: Child,
    input: ChildStdin,
    answers: Receiver<String>,
    patience: Duration,
    /// What it says it is.
    pub version: String,
}

impl Peers {
    /// Starts the script with this Python, with torch.compile or without.
    pub fn start(python: &str, compile: bool, patience: Duration) -> Result<Peers, String> {
        let compile = if compile { "compile" } else { "eager" };
        Peers::run(
            Command::new(python).args(["-u", "-c", SCRIPT, compile, TRITON]),
            patience,
        )
    }

    fn run(command: &mut Command, patience: Duration) -> Result<Peers, String> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("{}: {error}", command.get_program().to_string_lossy()))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("the peer has no pipes".into());
        };
        let (sender, answers) = channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let mut peers = Peers {
            child,
            input,
            answers,
            patience,
            version: String::new(),
        };
        let hello = peers.answer()?;
        peers.version = match (&hello["version"], &hello["error"]) {
            (Value::String(version), _) => version.clone(),
            (_, Value::String(error)) => return Err(error.clone()),
            _ => return Err(format!("it says {hello}")),
        };
        Ok(peers)
    }

    fn answer(&mut self) -> Result<Value, String> {
        match self.answers.recv_timeout(self.patience) {
            Ok(line) => serde_json::from_str(&line).map_err(|_| {
                let start: String = line.chars().take(80).collect();
                format!("it printed nonsense: {start:?}")
            }),
            Err(RecvTimeoutError::Timeout) => Err(format!("no answer in {} s", self.patience.as_secs())),
            Err(RecvTimeoutError::Disconnected) => Err("it ended".into()),
        }
    }

    fn ask(&mut self, question: &Value) -> Result<Value, String> {
        writeln!(self.input, "{question}")
            .and_then(|()| self.input.flush())
            .map_err(|_| "it ended".to_owned())?;
        let answer = self.answer()?;
        match &answer["error"] {
            Value::String(error) => Err(error.clone()),
            _ => Ok(answer),
        }
    }

    /// Sets up a case with graphs of `launches` runs over `copies` sets of buffers; the names of those that do it, and
    /// why others do not. Without `graphs` the runs are launched one by one between two events.
    pub fn prepare(
        &mut self,
        case: &Value,
        launches: usize,
        copies: usize,
        graphs: bool,
    ) -> Result<(Vec<String>, Vec<String>), String> {
        let answer = self.ask(&json!({"prepare": case, "launches": launches, "copies": copies, "graphs": graphs}))?;
        let failed = match &answer["failed"] {
            Value::Object(failed) => failed
                .iter()
                .map(|(name, why)| format!("{name}: {}", why.as_str().unwrap_or("no reason")))
                .collect(),
            _ => Vec::new(),
        };
        match &answer["ready"] {
            Value::Array(names) => {
                let names = names.iter().filter_map(|name| Some(name.as_str()?.to_owned()));
                Ok((names.collect(), failed))
            }
            _ => Err(format!("it says {answer}")),
        }
    }

    /// Microseconds of one run of a prepared peer.
    pub fn turn(&mut self, name: &str) -> Result<f64, String> {
        let answer = self.ask(&json!({"turn": name}))?;
        answer["us"]
            .as_f64()
            .filter(|us| us.is_finite() && *us > 0.0)
            .ok_or_else(|| format!("it says {answer}"))
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        // It is ours, and may hang: nothing is lost with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(text: &str) -> Result<Peers, String> {
        Peers::run(Command::new("sh").args(["-c", text]), Duration::from_millis(1500))
    }

    #[test]
    fn a_peer_is_asked_in_turns() {
        let mut peers = script(
            r#"echo '{"version":"test 1"}'; read a; echo '{"ready":["x"],"failed":{"y":"no"}}'; read b; echo '{"us":2.5}'; read c; echo '{"us":-1}'"#,
        )
        .unwrap();
        assert_eq!(peers.version, "test 1");
        assert_eq!(
            peers.prepare(&json!({}), 1, 1, true).unwrap(),
            (vec!["x".to_owned()], vec!["y: no".to_owned()])
        );
        assert_eq!(peers.turn("x").unwrap(), 2.5);
        assert!(peers.turn("x").unwrap_err().contains("-1"));
        assert_eq!(peers.turn("x").unwrap_err(), "it ended");
    }

    #[test]
    fn what_goes_wrong_with_a_peer_is_said() {
        let failure = |text: &str| script(text).err().unwrap();
        assert_eq!(failure("exit 3"), "it ended");
        assert!(failure("echo Traceback").contains("nonsense"));
        assert_eq!(failure(r#"echo '{"error":"no torch"}'"#), "no torch");
        assert!(failure("sleep 20").contains("no answer"));
        assert!(
            Peers::start("/nowhere/python3", true, Duration::from_secs(1))
                .err()
                .unwrap()
                .contains("/nowhere/python3")
        );
    }
}
