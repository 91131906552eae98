//! Peers, and turns with them.

use std::{collections::BTreeMap, time::Duration};

use super::{
    BenchArgs, Case, Harness, PeerTime,
    case::Beside,
    cublaslt::CublasLt,
    harness::median,
    peers::{Peers, Rival},
};

/// Everybody that is measured in turns with us.
pub struct Rivals {
    script: Option<Peers>,
    /// The Python, whether with torch.compile, and how often it may still be started again.
    python: (String, bool, u32),
    /// Those that are not there, and why.
    pub missing: Vec<String>,
    rounds: u32,
}

/// Starts of the script after failures.
const RESTARTS: u32 = 60;

impl Rivals {
    /// Nobody.
    pub const fn none() -> Self {
        Self {
            script: None,
            python: (String::new(), false, 0),
            missing: Vec::new(),
            rounds: 1,
        }
    }

    /// Starts the script, unless there shall be no peers.
    pub fn start(args: &BenchArgs) -> Self {
        let mut rivals = Self {
            python: (args.python.clone(), !args.no_compile, RESTARTS),
            rounds: args.rounds,
            ..Self::none()
        };
        if !args.no_peers {
            match Peers::start(&args.python, !args.no_compile, PATIENCE) {
                Ok(peers) => rivals.script = Some(peers),
                Err(why) => rivals.missing.push(format!("PyTorch: {why}")),
            }
        }
        rivals
    }

    /// The script's own words about its version, if it runs.
    pub fn version(&self) -> Option<String> {
        self.script.as_ref().map(|script| script.version.clone())
    }

    /// Notes why the script left, and starts another one: a failed capture leaves PyTorch unusable.
    fn restart(&mut self, case: &str, why: &str) {
        self.script = None;
        let (python, compile, left) = &mut self.python;
        if *left == 0 {
            self.missing.push(format!("PyTorch from {case} on: {why}"));
            return;
        }
        *left -= 1;
        self.missing.push(format!("PyTorch for {case}: {why}"));
        match Peers::start(python, *compile, PATIENCE) {
            Ok(peers) => self.script = Some(peers),
            Err(why) => self.missing.push(format!("PyTorch from {case} on: {why}")),
        }
    }
}

/// How long a peer may take to answer: torch.compile needs a while.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A, B, A, B, …: one turn of ours, one of each peer, as many rounds as asked for.
pub fn in_turns(
    harness: &Harness<'_>,
    case: &mut Case,
    microseconds: f64,
    rivals: &mut Rivals,
    cublas: Option<&CublasLt>,
) -> Result<Vec<PeerTime>, String> {
    let said = |error: host::Error| error.to_string();
    let launches = ((1000.0 / microseconds) as usize).clamp(1, 50).max(case.copies);
    let product = case.product.as_ref();
    let mut library = match (cublas, product) {
        (Some(library), Some(product)) => match library.prepare(product, launches) {
            Ok(prepared) => Some(prepared),
            Err(why) => {
                rivals
                    .missing
                    .push(format!("cuBLASLt for {:?}: {why}", product.extents));
                None
            }
        },
        _ => None,
    };
    let mut names = Vec::new();
    if let Some(script) = &mut rivals.script {
        let op = case.peer["op"].as_str().unwrap_or_default();
        let mut answer = script.prepare(&case.peer, launches, case.copies, true);
        if let Err(why) = &answer {
            // What cannot be captured, or not with all of its memory in graphs, is timed by events around single runs.
            eprintln!("peers of {op}: {why}; once more without graphs");
            rivals.restart(&format!("{op} in graphs"), why);
            answer = match &mut rivals.script {
                Some(script) => script.prepare(&case.peer, launches, case.copies, false),
                None => Ok(Default::default()),
            };
        }
        match answer {
            Ok((ready, failed)) => {
                names = ready;
                for why in failed.iter().map(|why| format!("peer for {op}: {why}")) {
                    if !rivals.missing.contains(&why) {
                        rivals.missing.push(why);
                    }
                }
            }
            Err(why) => rivals.restart(op, &why),
        }
    }
    if names.is_empty() && library.is_none() && case.beside.is_none() {
        return Ok(Vec::new());
    }
    let graph = harness.graph(launches, &mut case.run).map_err(said)?;
    harness.turn(&graph, launches).map_err(said)?;
    let beside = match &mut case.beside {
        Some(Beside { name, run, part }) => Some((*name, harness.graph(1, run).map_err(said)?, *part)),
        None => None,
    };
    let mut ours = Vec::new();
    let mut theirs: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for _ in 0..rivals.rounds {
        ours.push(harness.turn(&graph, launches).map_err(said)?);
        if let Some((name, graph, part)) = &beside {
            let us = harness.turn(graph, 1).map_err(said)? * part;
            theirs.entry((*name).to_owned()).or_default().push(us);
        }
        if let Some(prepared) = &mut library {
            match prepared.turn() {
                Ok(us) => theirs.entry(prepared.name().to_owned()).or_default().push(us),
                Err(why) => {
                    rivals.missing.push(format!("cuBLASLt: {why}"));
                    library = None;
                }
            }
        }
        for name in &names.clone() {
            let Some(script) = &mut rivals.script else { break };
            match script.turn(name) {
                Ok(us) => theirs.entry(name.clone()).or_default().push(us),
                Err(why) => {
                    rivals.restart(name, &why);
                    names.clear();
                    break;
                }
            }
        }
    }
    let ours = median(&ours);
    let times = theirs.into_iter().map(|(name, samples)| {
        let microseconds = median(&samples);
        PeerTime {
            name,
            microseconds,
            ours,
            ratio: microseconds / ours,
            rounds: samples.len() as u32,
        }
    });
    Ok(times.collect())
}
