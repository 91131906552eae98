//! What is done to a line of PTX.

/// The kind of mutants whose damage shows only where two numbers are equal.
pub const EXCHANGED: &str = "< and ≤ exchanged";

/// The instruction of a line, without predicate.
fn instruction(line: &str) -> &str {
    let line = line.trim();
    match line.strip_prefix('@') {
        Some(rest) => rest.split_once(char::is_whitespace).map_or("", |(_, rest)| rest.trim()),
        None => line,
    }
}

/// Every change of a line that the operators make: a kind and the new line.
pub fn changes(line: &str) -> Vec<(&'static str, String)> {
    let text = instruction(line);
    let mut found = Vec::new();
    let mut without = |kind| found.push((kind, String::new()));
    let opcode = text.split(|c: char| c.is_whitespace() || c == ';').next().unwrap_or("");
    if opcode.starts_with("bar.") || opcode.starts_with("barrier.") {
        without("barrier removed");
    } else if opcode.contains(".wait_group") || opcode.contains(".wait_all") {
        without("wait removed");
    } else if opcode.starts_with("fence.") || opcode.starts_with("membar") || opcode == "wgmma.fence.sync.aligned" {
        without("fence removed");
    } else if opcode.starts_with("mbarrier.arrive") || opcode.starts_with("cp.async.mbarrier.arrive") {
        without("arrival removed");
    } else if opcode.contains("commit_group") {
        without("commit removed");
    }
    // The last operand, to be changed.
    let last = |change: &dyn Fn(&str) -> Option<String>| -> Option<String> {
        let end = line.rfind(';')?;
        let start = line[..end].rfind(|c: char| c == ',' || c.is_whitespace())? + 1;
        let operand = change(line[start..end].trim())?;
        Some(format!("{}{}{}", &line[..start], operand, &line[end..]))
    };
    let number = |by: i64| {
        move |operand: &str| {
            operand
                .parse::<i64>()
                .ok()
                .map(|n| n + by)
                .filter(|&n| n >= 0)
                .map(|n| n.to_string())
        }
    };
    // A register operand is changed in a copy, in a scope of its own.
    let through = |change: &str| -> Option<String> {
        let end = line.rfind(';')?;
        let start = line[..end].rfind(|c: char| c == ',' || c.is_whitespace())? + 1;
        let operand = line[start..end].trim().to_owned();
        operand.starts_with('%').then(|| {
            let changed = change.replace("OPERAND", &operand);
            format!(
                "{{ .reg .b32 mutant; {changed} {} mutant{} }}",
                line[..start].trim_end(),
                &line[end..]
            )
        })
    };
    if opcode.contains(".wait_group") {
        found.extend(last(&number(1)).map(|line| ("wait for one group fewer", line)));
    }
    if opcode.starts_with("mbarrier.init") {
        for (kind, by) in [("arrival count + 1", 1), ("arrival count − 1", -1)] {
            let line = last(&number(by)).or_else(|| through(&format!("add.s32 mutant, OPERAND, {by};")));
            found.extend(line.map(|line| (kind, line)));
        }
    }
    if opcode.contains("expect_tx") {
        for (kind, by) in [("expected bytes + 16", 16), ("expected bytes − 16", -16)] {
            let line = last(&number(by)).or_else(|| through(&format!("add.s32 mutant, OPERAND, {by};")));
            found.extend(line.map(|line| (kind, line)));
        }
    }
    if opcode.contains("wait.parity") {
        let line = last(&|operand| operand.parse::<u32>().ok().map(|n| (n ^ 1).to_string()))
            .or_else(|| through("xor.b32 mutant, OPERAND, 1;"));
        found.extend(line.map(|line| ("phase flipped", line)));
    }
    // A descriptor of `wgmma` begins with a constant: 128-byte swizzling (1 in its two highest bits) becomes 64-byte (2).
    if matches!(opcode, "or.b64" | "add.s64") {
        let other = last(&|operand| {
            let descriptor = operand.parse::<i64>().ok()?;
            (descriptor as u64 >> 62 == 1).then(|| (descriptor ^ (3 << 62)).to_string())
        });
        found.extend(other.map(|line| ("swizzle mode", line)));
    }
    if opcode.starts_with("setp.") {
        for (from, to) in [
            ("setp.lt.", "setp.le."),
            ("setp.le.", "setp.lt."),
            ("setp.gt.", "setp.ge."),
            ("setp.ge.", "setp.gt."),
        ] {
            if opcode.starts_with(from) {
                found.push((EXCHANGED, line.replacen(from, to, 1)));
            }
        }
    }
    found
}

/// The line behind a trap: on every path, or when the operands of a comparison are equal.
pub fn trapped(line: &str, when_equal: bool) -> Option<String> {
    if !when_equal {
        return Some(format!("trap; {line}"));
    }
    let text = instruction(line);
    let (opcode, operands) = text.split_once(char::is_whitespace)?;
    let ty = opcode.rsplit('.').next()?;
    let operands: Vec<&str> = operands
        .trim()
        .trim_end_matches(';')
        .split(',')
        .map(str::trim)
        .collect();
    let [_, a, b] = operands[..] else { return None };
    Some(format!(
        "{{ .reg .pred mutant; setp.eq.{ty} mutant, {a}, {b}; @mutant trap; }} {line}"
    ))
}

/// The source with a line exchanged.
pub fn with_line(source: &str, number: usize, text: &str) -> String {
    let lines: Vec<&str> = source
        .lines()
        .enumerate()
        .map(|(index, line)| if index + 1 == number { text } else { line })
        .collect();
    lines.join("\n")
}

#[test]
fn the_operators_change_what_they_say() {
    let kinds = |line| changes(line).into_iter().map(|(kind, _)| kind).collect::<Vec<_>>();
    assert_eq!(kinds("\tbar.sync \t0;"), ["barrier removed"]);
    assert_eq!(kinds("@%p1 mbarrier.arrive.shared.b64 _, [%r1];"), ["arrival removed"]);
    assert_eq!(
        changes("cp.async.wait_group 1;")[1],
        ("wait for one group fewer", "cp.async.wait_group 2;".to_owned())
    );
    assert_eq!(
        changes("setp.ge.u32 \t%p1, %r1, %r2;"),
        [("< and ≤ exchanged", "setp.gt.u32 \t%p1, %r1, %r2;".to_owned())]
    );
    assert_eq!(
        changes("mbarrier.init.shared.b64 [%r1], 4;")[1].1,
        "mbarrier.init.shared.b64 [%r1], 3;"
    );
    let flipped = &changes("mbarrier.try_wait.parity.shared::cta.b64 p, [%r1], %r2;")[0].1;
    assert!(
        flipped.contains("xor.b32 mutant, %r2, 1;") && flipped.ends_with("[%r1], mutant; }"),
        "{flipped}"
    );
    assert_eq!(
        changes("or.b64 %rd2, %rd1, 4611686293305360384;"),
        [("swizzle mode", "or.b64 %rd2, %rd1, -9223371761976803328;".to_owned())]
    );
    assert!(changes("add.s64 %rd2, %rd1, 64;").is_empty());
    assert!(changes("add.s32 %r1, %r2, 1;").is_empty());
}
