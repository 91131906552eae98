//! Damaged kernels end in a module or an error, and launched ones in a result or an error: never in a panic.
//!
//! The test kernels are cut, spliced and scribbled on at random. Two seconds unless `FERROFLASH_FUZZ_SECONDS` says
//! otherwise; `FERROFLASH_FUZZ_SEED` starts elsewhere. `fuzz/fuzz_targets/ptx_parse.rs` does the same with coverage.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use emulator::{Argument, Checks, Launch, Machine, Module, Target};

/// xorshift64*: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % bound.max(1)
    }
}

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).map_or(otherwise, |text| {
        text.parse().unwrap_or_else(|_| panic!("{variable}={text}"))
    })
}

fn kernels() -> Vec<String> {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut paths: Vec<_> = ["isa", "nvcc", "fault"]
        .iter()
        .flat_map(|folder| std::fs::read_dir(tests.join(folder)).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "ptx"))
        .collect();
    paths.sort();
    paths
        .iter()
        .map(|path| std::fs::read_to_string(path).unwrap())
        .collect()
}

/// Words that change what an instruction means.
const WORDS: [&str; 24] = [
    "0",
    "1",
    "-1",
    "4294967295",
    "18446744073709551615",
    "0x7fffffff",
    "%r1",
    "%rd1",
    "%p1",
    "%f1",
    "{",
    "}",
    "[",
    "]",
    ",",
    ";",
    ".v4",
    ".shared",
    ".global",
    ".local",
    "@!%p1",
    "bra",
    ".b128",
    ".b8",
];

/// A few changes of one kernel, mostly by whole words, sometimes with a line of another.
fn damage(random: &mut Random, all: &[String]) -> String {
    let source = &all[random.below(all.len())];
    let mut lines: Vec<String> = source.lines().map(str::to_owned).collect();
    for _ in 0..1 + random.below(4) {
        let at = random.below(lines.len());
        match random.below(7) {
            0 => {
                lines.remove(at);
            }
            1 => {
                let other = &all[random.below(all.len())];
                let borrowed = other
                    .lines()
                    .nth(random.below(other.lines().count()))
                    .unwrap_or_default();
                lines.insert(at, borrowed.to_owned());
            }
            2 => {
                let to = random.below(lines.len());
                lines.swap(at, to);
            }
            3 => {
                let mut bytes = lines[at].clone().into_bytes();
                if !bytes.is_empty() {
                    let index = random.below(bytes.len());
                    bytes[index] = b' ' + random.below(95) as u8;
                }
                lines[at] = String::from_utf8_lossy(&bytes).into_owned();
            }
            _ => {
                let mut words: Vec<&str> = lines[at].split(' ').collect();
                let index = random.below(words.len());
                words[index] = WORDS[random.below(WORDS.len())];
                lines[at] = words.join(" ");
            }
        }
        if lines.is_empty() {
            lines.push(String::new());
        }
    }
    lines.join("\n")
}

/// Parses, prints, prepares and launches.
fn exercise(text: &str, random: &mut Random) -> Result<(), String> {
    let Ok(module) = Module::parse(text) else { return Ok(()) };
    let printed = module.syntax().to_string();
    let again = Module::parse(&printed).map_err(|error| format!("the printed module does not parse: {error}"))?;
    if again.syntax().to_string() != printed {
        return Err("printing the printed module changes it".into());
    }
    let checks = if random.below(2) == 0 {
        Checks::all()
    } else {
        Checks::none()
    };
    let machine = Machine::new(Target::SM_90A)
        .checks(checks)
        .step_budget(2000)
        .threads(1)
        .memory_limit(1 << 24);
    let data = machine.allocate(4096).map_err(|error| error.to_string())?;
    let entries: Vec<String> = module.entries().take(2).map(str::to_owned).collect();
    for entry in entries {
        let Ok(info) = module.entry(&entry) else { continue };
        let bytes = data.0.to_le_bytes().repeat(8);
        let arguments: Vec<Argument> = info
            .parameters
            .iter()
            .map(|parameter| Argument::Bytes(&bytes[..parameter.size.min(bytes.len())]))
            .collect();
        let Ok(params) = info.pack(&arguments) else { continue };
        let launch = Launch {
            block: [[32, 64, 128][random.below(3)], 1, 1],
            params: &params,
            dynamic_shared_bytes: 4096,
            ..Launch::default()
        };
        let _ = machine.launch(&module, &entry, &launch);
    }
    Ok(())
}

#[test]
fn damaged_kernels_never_panic() {
    let all = kernels();
    let limit = Duration::from_secs(number("FERROFLASH_FUZZ_SECONDS", 2));
    let mut random = Random(number("FERROFLASH_FUZZ_SEED", 1).max(1));
    let start = Instant::now();
    let mut tried = 0u64;
    while start.elapsed() < limit {
        let text = damage(&mut random, &all);
        match catch_unwind(AssertUnwindSafe(|| exercise(&text, &mut random))) {
            Ok(Ok(())) => {}
            Ok(Err(problem)) => panic!("{problem}\n{text}"),
            Err(_) => panic!("a panic, above, of\n{text}"),
        }
        tried += 1;
    }
    println!("{tried} damaged kernels");
    assert!(tried > 10);
}
