//! Random problems of every op on every device: `PROPTEST_CASES=100000 cargo test --release --test campaign` is a fuzzing
//! campaign. Seeds that failed once are in `campaign.seeds`.

mod common;

use ferroflash::{
    inventory::OPS,
    verify::{GROUPS, Size, Verdict, check, strategy},
};
use host::{DType, Device};

const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

/// Problems of each op, dtype and tier; the rest of the seconds of a test run goes to the families' own tests.
fn cases() -> u64 {
    std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(1)
}

/// What the op's own problem of this seed does on the device.
fn verdict(device: &Device, op: &str, dtype: DType, seed: u64) -> Result<(), String> {
    let draw = strategy(op).ok_or_else(|| format!("no strategy for {op}"))?;
    let verdict = check(draw, Size::of(device), device, dtype, seed);
    verdict.failure.map_or(Ok(()), |why| {
        let tier = device.tier();
        Err(format!(
            "{why}\n  {}\n  in campaign.seeds: {op} {dtype} {tier} {seed}",
            verdict.problem
        ))
    })
}

/// Fails with what every op got wrong on these devices.
#[track_caller]
fn every_op_on(devices: &[Device]) {
    let failures: Vec<String> = devices
        .iter()
        .flat_map(|device| OPS.iter().map(move |op| (device, op)))
        .flat_map(|(device, op)| op.dtypes.iter().map(move |dtype| (device, op, *dtype)))
        .filter(|(device, op, dtype)| op.tiers(*dtype).contains(&device.tier()))
        .flat_map(|(device, op, dtype)| {
            (0..cases()).filter_map(move |seed| verdict(device, op.name, dtype, seed).err())
        })
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn every_op_on_random_problems() {
    every_op_on(&common::devices());
}

/// GPUs that run the kernels of sm_80 and have less shared memory than its first ones (sm_86, sm_89) or more (sm_100).
#[test]
fn every_op_with_other_shared_memory() {
    every_op_on(&[99, 227].map(|kilobytes| common::ampere(kilobytes << 10)));
}

#[test]
fn seeds_that_failed_once() {
    let devices = common::devices();
    for line in include_str!("campaign.seeds")
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
    {
        let words: Vec<&str> = line.split_whitespace().collect();
        let &[op, dtype, tier, seed] = &words[..] else {
            panic!("{line}")
        };
        let dtype = DTYPES.into_iter().find(|known| known.name() == dtype).expect("a dtype");
        let seed = seed.parse().expect("a seed");
        for device in devices.iter().filter(|device| device.tier().name() == tier) {
            verdict(device, op, dtype, seed).unwrap_or_else(|why| panic!("{why}"));
        }
    }
}

#[test]
fn named_problems_can_be_drawn_and_the_first_of_each_group_passes() {
    let device = &common::devices()[0];
    for group in GROUPS {
        let problems = (group.problems)(Size::of(device));
        assert!(!problems.is_empty());
        let (name, problem) = &problems[0];
        let verdict = Verdict::of(problem, device, DType::F16);
        assert!(verdict.failure.is_none(), "{} {name}: {verdict:?}", group.name);
    }
    let nine = GROUPS
        .iter()
        .find(|group| group.name == "flashcore")
        .expect("FlashCore's group");
    assert_eq!((nine.problems)(Size::Large).len(), 9);
}

#[test]
fn the_same_seed_is_the_same_problem() {
    for op in OPS {
        let draw = strategy(op.name).expect("a strategy");
        let drawn = |seed| format!("{:?}", ferroflash::verify::draw_one(draw, Size::Small, seed));
        assert_eq!(drawn(7), drawn(7), "{}", op.name);
        assert_ne!(drawn(7), drawn(8), "{}", op.name);
    }
}
