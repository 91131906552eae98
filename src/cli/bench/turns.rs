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

/// Whose turn it is.
#[derive(PartialEq, Eq)]
enum Turn {
    Ours,
    /// Another case of our own.
    Beside,
    /// cuBLASLt.
    Library,
    /// A peer of the script.
    Script(String),
}

/// How long a peer may take to answer: torch.compile needs a while.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A, B, B, A, A, …: one turn of ours, one of each peer, as many rounds as asked for.
pub fn in_turns(
    harness: &Harness<'_>,
    case: &mut Case,
    microseconds: f64,
    rivals: &mut Rivals,
    cublas: Option<&CublasLt>,
) -> Result<Vec<PeerTime>, String> {
    let said = |error: host::Error| error.to_string();
    // A graph's own start takes a few microseconds: about a millisecond hides it.
    let launches = ((1000.0 / microseconds) as usize).clamp(1, 200).max(case.copies);
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
    let mut order: Vec<Turn> = vec![Turn::Ours];
    order.extend(beside.is_some().then_some(Turn::Beside));
    order.extend(library.is_some().then_some(Turn::Library));
    order.extend(names.into_iter().map(Turn::Script));
    for _ in 0..rivals.rounds {
        let mut gone = Vec::new();
        for turn in &order {
            let result = match turn {
                Turn::Ours => {
                    ours.push(harness.turn(&graph, launches).map_err(said)?);
                    continue;
                }
                Turn::Beside => {
                    let Some((name, graph, part)) = &beside else { continue };
                    ((*name).to_owned(), Ok(harness.turn(graph, 1).map_err(said)? * part))
                }
                Turn::Library => {
                    let Some(prepared) = &mut library else { continue };
                    (prepared.name().to_owned(), prepared.turn())
                }
                Turn::Script(name) => {
                    // Its other names went with it where it had to start again.
                    let Some(script) = rivals.script.as_mut().filter(|_| gone.is_empty()) else {
                        continue;
                    };
                    (name.clone(), script.turn(name))
                }
            };
            match result {
                (name, Ok(us)) => theirs.entry(name).or_default().push(us),
                (name, Err(why)) if *turn == Turn::Library => {
                    rivals.missing.push(format!("{name}: {why}"));
                    library = None;
                }
                (name, Err(why)) => {
                    rivals.restart(&name, &why);
                    gone.push(name);
                }
            }
        }
        if !gone.is_empty() {
            order.retain(|turn| !matches!(turn, Turn::Script(_)));
        }
        // Nobody always follows the same one: what ran before has warmed the GPU, or let it rest.
        order.reverse();
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
