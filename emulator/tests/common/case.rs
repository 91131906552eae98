//! The header of a test kernel: how it is launched and what must come out.
//!
//! Header lines, all optional but the arguments, which stand in the order of the entry's parameters:
//!
//! ```text
//! // entry: name            (default: the only entry)
//! // grid: 2 1 1
//! // block: 32 1 1          (default)
//! // cluster: 2 1 1
//! // shared: 1024           dynamic shared memory in bytes
//! // target: sm_90a
//! // in u32: 1 2 3          a buffer with these values
//! // in u32: iota 64        0, 1, 2, …
//! // secret u32: 1 2        a buffer that taint starts from
//! // out u32: 2 4 6         a buffer that must hold these values afterwards
//! // out f32 ulp 2: 1.5 2   within two units in the last place
//! // inout u32: 1 2 -> 3 4  a buffer with values before and after
//! // scratch u32: 64        a buffer of so many elements that nobody looks at
//! // arg u32: 7             a scalar
//! // fault: race            the launch must end in this fault
//! // line: 20               at this line of the PTX
//! // emulator only: why     a GPU would not load it
//! ```
//!
//! Values are decimal, hexadecimal (`0x…`, bit patterns) or floats; `v*n` repeats a value.
//!
//! The emulator's tests and `host/examples/calibrate.rs`, which runs the same files on a GPU, both read this.

/// A test kernel's header.
pub struct Case {
    pub entry: Option<String>,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub cluster: [u32; 3],
    pub shared: u32,
    pub target: String,
    pub fault: Option<String>,
    pub line: Option<u32>,
    /// Why no GPU runs it.
    pub emulator_only: Option<String>,
    pub arguments: Vec<Argument>,
}

/// An argument of the entry.
pub enum Argument {
    /// Passed by value.
    Scalar(Vec<u8>),
    /// Passed by address.
    Buffer(Buffer),
}

/// Global memory.
pub struct Buffer {
    pub bytes: usize,
    pub before: Option<Vec<u8>>,
    pub after: Option<Vec<u8>>,
    pub secret: bool,
    ty: String,
    ulp: u64,
}

/// The bytes of one value.
fn value(ty: &str, text: &str) -> Vec<u8> {
    let bits = if let Some(hex) = text.strip_prefix("0x") {
        u64::from_str_radix(hex, 16).unwrap_or_else(|_| panic!("bad number {text}"))
    } else if ty == "f32" {
        u64::from(
            text.parse::<f32>()
                .unwrap_or_else(|_| panic!("bad number {text}"))
                .to_bits(),
        )
    } else if ty == "f64" {
        text.parse::<f64>()
            .unwrap_or_else(|_| panic!("bad number {text}"))
            .to_bits()
    } else if text.starts_with('-') {
        text.parse::<i64>().unwrap_or_else(|_| panic!("bad number {text}")) as u64
    } else {
        text.parse::<u64>().unwrap_or_else(|_| panic!("bad number {text}"))
    };
    bits.to_le_bytes()[..width(ty)].to_vec()
}

fn width(ty: &str) -> usize {
    match ty.trim_start_matches(|c: char| c.is_ascii_alphabetic()) {
        "8" => 1,
        "16" => 2,
        "32" => 4,
        "64" => 8,
        other => panic!("unknown type {ty} ({other})"),
    }
}

fn values(ty: &str, text: &str) -> Vec<u8> {
    let words: Vec<&str> = text.split_whitespace().collect();
    if let ["iota", n] = words[..] {
        return (0..n.parse::<u64>().unwrap())
            .flat_map(|i| value(ty, &i.to_string()))
            .collect();
    }
    words
        .iter()
        .flat_map(|word| match word.split_once('*') {
            Some((v, n)) => value(ty, v).repeat(n.parse().unwrap()),
            None => value(ty, word),
        })
        .collect()
}

impl Case {
    /// Reads the comment lines at the start of a file.
    ///
    /// # Panics
    /// When the header is malformed: it is a test's own text.
    pub fn parse(source: &str) -> Case {
        let mut case = Case {
            entry: None,
            grid: [1; 3],
            block: [32, 1, 1],
            cluster: [1; 3],
            shared: 0,
            target: "sm_90a".into(),
            fault: None,
            line: None,
            emulator_only: None,
            arguments: Vec::new(),
        };
        for text in source.lines().map_while(|l| l.strip_prefix("//")) {
            let Some((key, rest)) = text.trim().split_once(':') else {
                continue;
            };
            let rest = rest.trim();
            let triple = || {
                let mut n = rest.split_whitespace().map(|v| v.parse::<u32>().unwrap());
                [n.next().unwrap(), n.next().unwrap_or(1), n.next().unwrap_or(1)]
            };
            let words: Vec<&str> = key.split_whitespace().collect();
            match words[..] {
                ["entry"] => case.entry = Some(rest.into()),
                ["grid"] => case.grid = triple(),
                ["block"] => case.block = triple(),
                ["cluster"] => case.cluster = triple(),
                ["shared"] => case.shared = rest.parse().unwrap(),
                ["target"] => case.target = rest.into(),
                ["fault"] => case.fault = Some(rest.into()),
                ["emulator", "only"] => case.emulator_only = Some(rest.into()),
                ["line"] => case.line = Some(rest.parse().unwrap()),
                ["arg", ty] => case.arguments.push(Argument::Scalar(values(ty, rest))),
                [kind @ ("in" | "out" | "inout" | "scratch" | "secret"), ty, ..] => {
                    let ulp = words.iter().position(|w| *w == "ulp").map_or("0", |i| words[i + 1]);
                    let (before, after) = match kind {
                        "in" | "secret" => (Some(values(ty, rest)), None),
                        "out" => (None, Some(values(ty, rest))),
                        "inout" => {
                            let (before, after) = rest.split_once("->").unwrap();
                            (Some(values(ty, before)), Some(values(ty, after)))
                        }
                        _ => (None, None),
                    };
                    let bytes = match before.as_ref().or(after.as_ref()) {
                        Some(bytes) => bytes.len(),
                        None => rest.parse::<usize>().unwrap() * width(ty),
                    };
                    case.arguments.push(Argument::Buffer(Buffer {
                        bytes,
                        before,
                        after,
                        secret: kind == "secret",
                        ty: ty.into(),
                        ulp: ulp.parse().unwrap(),
                    }));
                }
                _ => {}
            }
        }
        case
    }
}

impl Buffer {
    /// The largest distance from what was expected, in units of the last place; nothing is expected of some buffers.
    ///
    /// # Errors
    /// The first element that is further away than the header allows.
    pub fn compare(&self, got: &[u8]) -> Result<u64, String> {
        let mut worst = 0;
        for (i, w, g) in self.differences(got) {
            worst = worst.max(w.abs_diff(g));
            if w.abs_diff(g) > self.ulp {
                let float = match self.ty.as_str() {
                    "f32" => format!(" ({} and {})", f32::from_bits(w as u32), f32::from_bits(g as u32)),
                    _ => String::new(),
                };
                return Err(format!("element {i}: expected {w:#x}, found {g:#x}{float}"));
            }
        }
        Ok(worst)
    }

    /// Element, expected and found bits wherever they differ.
    pub fn differences(&self, got: &[u8]) -> Vec<(usize, u64, u64)> {
        let expected = self.after.as_deref().unwrap_or_default();
        let number = |b: &[u8]| b.iter().rev().fold(0u64, |v, b| v << 8 | u64::from(*b));
        let width = width(&self.ty);
        let pairs = expected.chunks(width).zip(got.chunks(width)).enumerate();
        pairs
            .map(|(i, (w, g))| (i, number(w), number(g)))
            .filter(|(_, w, g)| w != g)
            .collect()
    }
}
