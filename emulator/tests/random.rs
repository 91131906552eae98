//! Random programs against a plain interpreter of one lane, and random damage to PTX against the parser.

use emulator::{Checks, Launch, Machine, Module, Target};
use proptest::prelude::*;

/// Registers of a generated program.
const REGISTERS: usize = 6;

/// A statement of the generated language.
#[derive(Clone, Debug)]
enum Statement {
    /// `d = a op b`
    Binary(usize, usize, usize, usize),
    /// `d = immediate`
    Set(usize, u32),
    /// `if (a < b) { … } else { … }`
    If(usize, usize, Vec<Statement>, Vec<Statement>),
    /// `for (n times, n = a & 3) { … }`
    Loop(usize, Vec<Statement>),
    /// Under a predicate: `if (a odd) d = d op b`, without a branch.
    Guarded(usize, usize, usize, usize),
}

/// An opcode and what it computes.
type Operator = (&'static str, fn(u32, u32) -> u32);

const OPERATORS: [Operator; 10] = [
    ("add.s32", |a, b| a.wrapping_add(b)),
    ("sub.s32", |a, b| a.wrapping_sub(b)),
    ("mul.lo.s32", |a, b| a.wrapping_mul(b)),
    ("mul.hi.u32", |a, b| ((u64::from(a) * u64::from(b)) >> 32) as u32),
    ("xor.b32", |a, b| a ^ b),
    ("and.b32", |a, b| a & b),
    ("min.s32", |a, b| (a as i32).min(b as i32) as u32),
    ("max.u32", |a, b| a.max(b)),
    ("shr.u32", |a, b| if b > 31 { 0 } else { a >> b }),
    ("shl.b32", |a, b| if b > 31 { 0 } else { a << b }),
];

fn statements(depth: u32) -> BoxedStrategy<Vec<Statement>> {
    let r = 0..REGISTERS;
    let leaf = prop_oneof![
        4 => (0..OPERATORS.len(), r.clone(), r.clone(), r.clone()).prop_map(|(o, d, a, b)| Statement::Binary(o, d, a, b)),
        1 => (r.clone(), any::<u32>()).prop_map(|(d, v)| Statement::Set(d, v)),
        1 => (0..OPERATORS.len(), r.clone(), r.clone(), r.clone()).prop_map(|(o, d, a, b)| Statement::Guarded(o, d, a, b)),
    ];
    if depth == 0 {
        return prop::collection::vec(leaf, 1..5).boxed();
    }
    let inner = statements(depth - 1);
    prop::collection::vec(
        prop_oneof![
            4 => leaf,
            1 => (r.clone(), r.clone(), inner.clone(), inner.clone()).prop_map(|(a, b, t, e)| Statement::If(a, b, t, e)),
            1 => (r.clone(), inner).prop_map(|(a, body)| Statement::Loop(a, body)),
        ],
        1..6,
    )
    .boxed()
}

/// The same program as PTX.
fn emit(list: &[Statement], text: &mut String, label: &mut u32) {
    for statement in list {
        match statement {
            Statement::Binary(o, d, a, b) => text.push_str(&format!("{} %r{d}, %r{a}, %r{b};\n", OPERATORS[*o].0)),
            Statement::Set(d, v) => text.push_str(&format!("mov.b32 %r{d}, {v};\n")),
            Statement::Guarded(o, d, a, b) => text.push_str(&format!(
                "and.b32 %t0, %r{a}, 1;\nsetp.ne.u32 %p0, %t0, 0;\n@%p0 {} %r{d}, %r{d}, %r{b};\n",
                OPERATORS[*o].0
            )),
            Statement::If(a, b, yes, no) => {
                *label += 1;
                let n = *label;
                text.push_str(&format!("setp.lt.u32 %p0, %r{a}, %r{b};\n@!%p0 bra $ELSE{n};\n"));
                emit(yes, text, label);
                text.push_str(&format!("bra.uni $END{n};\n$ELSE{n}:\n"));
                emit(no, text, label);
                text.push_str(&format!("$END{n}:\n"));
            }
            Statement::Loop(a, body) => {
                *label += 1;
                let n = *label;
                text.push_str(&format!(
                    "{{\n.reg .b32 %n;\n.reg .pred %q;\nand.b32 %n, %r{a}, 3;\n$LOOP{n}:\nsetp.eq.u32 %q, %n, 0;\n@%q bra $OUT{n};\n"
                ));
                emit(body, text, label);
                text.push_str(&format!("sub.u32 %n, %n, 1;\nbra.uni $LOOP{n};\n$OUT{n}:\n}}\n"));
            }
        }
    }
}

/// The same program, by one lane.
fn interpret(list: &[Statement], r: &mut [u32; REGISTERS]) {
    for statement in list {
        match statement {
            Statement::Binary(o, d, a, b) => r[*d] = OPERATORS[*o].1(r[*a], r[*b]),
            Statement::Set(d, v) => r[*d] = *v,
            Statement::Guarded(o, d, a, b) => {
                if r[*a] & 1 != 0 {
                    r[*d] = OPERATORS[*o].1(r[*d], r[*b]);
                }
            }
            Statement::If(a, b, yes, no) => interpret(if r[*a] < r[*b] { yes } else { no }, r),
            Statement::Loop(a, body) => (0..r[*a] & 3).for_each(|_| interpret(body, r)),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn every_lane_computes_what_one_lane_alone_would(
        program in statements(3),
        seed in prop::option::of(any::<u64>()),
        start in prop::collection::vec(any::<u32>(), 64 * REGISTERS),
    ) {
        let mut body = String::new();
        emit(&program, &mut body, &mut 0);
        let mut text = String::from(
            ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 data)\n{\n\
             .reg .b32 %r<6>, %t<2>;\n.reg .b64 %a<4>;\n.reg .pred %p<2>;\nld.param.u64 %a0, [data];\n\
             mov.u32 %t0, %tid.x;\nmul.wide.u32 %a1, %t0, 24;\nadd.s64 %a0, %a0, %a1;\n",
        );
        (0..REGISTERS).for_each(|i| text.push_str(&format!("ld.global.u32 %r{i}, [%a0+{}];\n", i * 4)));
        text.push_str(&body);
        (0..REGISTERS).for_each(|i| text.push_str(&format!("st.global.u32 [%a0+{}], %r{i};\n", i * 4)));
        text.push_str("bar.sync 0;\nret;\n}\n");
        let module = Module::parse(&text).unwrap();
        let mut machine = Machine::new(Target::SM_90A).step_budget(10_000_000).threads(1);
        if let Some(seed) = seed {
            machine = machine.seed(seed).checks(Checks::all());
        }
        let data = machine.allocate(start.len() * 4).unwrap();
        let bytes: Vec<u8> = start.iter().flat_map(|v| v.to_le_bytes()).collect();
        machine.write(data, &bytes).unwrap();
        let params = data.0.to_le_bytes();
        let launch = Launch { block: [64, 1, 1], params: &params, ..Launch::default() };
        machine.launch(&module, "k", &launch).map_err(|e| TestCaseError::fail(format!("{e}\n{text}")))?;
        let mut got = vec![0; bytes.len()];
        machine.read(data, &mut got).unwrap();
        for (lane, r) in start.chunks(REGISTERS).enumerate() {
            let mut r: [u32; REGISTERS] = r.try_into().unwrap();
            interpret(&program, &mut r);
            let base = lane * REGISTERS * 4;
            let found: Vec<u32> =
                got[base..base + 24].chunks(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect();
            prop_assert_eq!(&found[..], &r[..], "lane {} of\n{}", lane, text);
        }
    }

    /// Loading damaged PTX ends in a module or an error, whatever the damage.
    #[test]
    fn damaged_ptx_is_an_error_and_never_a_panic(
        file in 0usize..4,
        cuts in prop::collection::vec((any::<prop::sample::Index>(), 0usize..6, "[ -~]{0,4}"), 1..6),
    ) {
        let source = [
            include_str!("isa/control.ptx"),
            include_str!("isa/calls.ptx"),
            include_str!("isa/warp.ptx"),
            include_str!("nvcc/softmax.ptx"),
        ][file];
        let mut text: Vec<u8> = source.bytes().filter(u8::is_ascii).collect();
        for (at, length, insert) in cuts {
            let at = at.index(text.len());
            let end = (at + length).min(text.len());
            text.splice(at..end, insert.bytes());
        }
        let text = String::from_utf8(text).unwrap();
        if let Ok(module) = Module::parse(&text) {
            let printed = module.syntax().to_string();
            let again = Module::parse(&printed).map_err(|e| TestCaseError::fail(format!("{e}\n{printed}")))?;
            prop_assert_eq!(again.syntax().to_string(), printed);
            let names: Vec<String> = module.entries().map(String::from).collect();
            for name in names {
                let _ = module.entry(&name);
            }
        }
    }

    #[test]
    fn noise_is_an_error_and_never_a_panic(text in "\\PC{0,200}") {
        let _ = Module::parse(&text);
        let _ = Module::parse(&format!(".version 8.0\n.target sm_80\n.address_size 64\n.entry k() {{ {text} }}"));
    }
}
