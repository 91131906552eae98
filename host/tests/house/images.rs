//! Archives of images, whole and damaged, and tiers.

use std::io::{Cursor, Write};

use host::{
    Error, Tier,
    images::{Image, Images},
};
use proptest::prelude::*;
use zip::{ZipWriter, write::SimpleFileOptions};

fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in members {
        zip.start_file(*name, SimpleFileOptions::default()).unwrap();
        zip.write_all(content).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// Archives are embedded in the binary, so `open` wants one that lives as long; a test's few are leaked.
fn open(bytes: Vec<u8>) -> host::Result<Images> {
    Images::open(bytes.leak())
}

fn kernel(entry: &str, change: (&str, &str)) -> String {
    let text = format!(
        r#"{{"entry": "{entry}", "unit": "u", "tier": "sm_80", "threads": [128, 1, 1], "cluster": [1, 1, 1],
            "param_bytes": 32, "ptx_version": "8.3", "file": "{entry}.ptx"}}"#
    );
    assert!(text.contains(change.0));
    text.replace(change.0, change.1)
}

fn with_manifest(manifest: &str) -> Vec<u8> {
    archive(&[("manifest.json", manifest.as_bytes()), ("k.ptx", b".version 8.3")])
}

fn manifest(kernels: &[String]) -> String {
    format!(r#"{{"kernels": [{}]}}"#, kernels.join(","))
}

fn problem(result: host::Result<Images>) -> String {
    match result.err().expect("refused") {
        error @ Error::Format { .. } => error.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_whole_archive() {
    let images = open(with_manifest(&manifest(&[kernel("k", ("", ""))]))).unwrap();
    assert_eq!(images.iter().count(), 1);
    let Image { info, ptx } = images.load(Tier::Sm80, "k").unwrap();
    assert_eq!(
        (info.threads, info.param_bytes, ptx.as_str()),
        ([128, 1, 1], 32, ".version 8.3")
    );
    let error = images.load(Tier::Sm75, "k").unwrap_err();
    assert_eq!(error.to_string(), "kernel k is not supported on tier sm_75");
    assert!(images.info(Tier::Sm80, "other").is_none());
    // What Hopper has no kernel of its own for, it runs as sm_80 does.
    assert_eq!(images.load(Tier::Sm90a, "k").unwrap().info.tier, Tier::Sm80);
}

#[test]
fn wrong_manifests() {
    assert!(problem(open(Vec::new())).starts_with("PTX archive: "));
    assert!(problem(open(b"not a zip file".to_vec())).starts_with("PTX archive: "));
    assert!(problem(open(archive(&[("k.ptx", b"")]))).starts_with("manifest.json: "));
    for text in ["", "[]", "{}", r#"{"kernels": 7}"#, r#"{"kernels": [{}]}"#, "\u{feff}{"] {
        assert!(
            problem(open(with_manifest(text))).starts_with("manifest.json: "),
            "{text}"
        );
    }
    assert!(problem(open(archive(&[("manifest.json", &[0xff, 0xfe, 0x00])]))).starts_with("manifest.json: "));
    for (change, said) in [
        (("sm_80", "sm_81"), "sm_81"),
        (("[128, 1, 1]", "[128, 1]"), "3"),
        (
            ("[128, 1, 1]", "[0, 1, 1]"),
            "kernel k of sm_80 has blocks of [0, 1, 1] threads; 1 to 1024 are allowed",
        ),
        (("[128, 1, 1]", "[4294967295, 4294967295, 2]"), "1 to 1024 are allowed"),
        (
            ("[1, 1, 1]", "[0, 1, 1]"),
            "kernel k of sm_80 has clusters of [0, 1, 1] blocks; 1 to 16 are allowed",
        ),
        (("[1, 1, 1]", "[17, 1, 1]"), "1 to 16 are allowed"),
        (
            ("\"param_bytes\": 32", "\"param_bytes\": 40000"),
            "takes 40000 bytes; at most 32764 are allowed",
        ),
        (("\"param_bytes\": 32", "\"param_bytes\": -1"), "-1"),
    ] {
        let text = problem(open(with_manifest(&manifest(&[kernel("k", change)]))));
        assert!(
            text.starts_with("manifest.json: ") && text.contains(said),
            "{change:?}: {text}"
        );
    }
    let twice = problem(open(with_manifest(&manifest(&[
        kernel("k", ("", "")),
        kernel("k", ("", "")),
    ]))));
    assert_eq!(twice, "manifest.json: kernel k of sm_80 is listed twice");
    // A member that is missing is found when it is asked for.
    let images = open(with_manifest(&manifest(&[kernel("m", ("", ""))]))).unwrap();
    assert!(matches!(images.load(Tier::Sm80, "m"), Err(Error::Format { what, .. }) if what == "m.ptx"));
}

#[test]
fn members_that_unpack_to_too_much() {
    // 65 MiB of zeros take 65 kB packed.
    let bomb = vec![0u8; 65 << 20];
    let text = manifest(&[kernel("k", ("", ""))]);
    let images = open(archive(&[("manifest.json", text.as_bytes()), ("k.ptx", &bomb)])).unwrap();
    let error = images.load(Tier::Sm80, "k").unwrap_err();
    assert_eq!(error.to_string(), "k.ptx: unpacks to more than 67108864 bytes");
}

/// Opens and reads everything; whatever is wrong must come as a typed error.
fn read_all(bytes: Vec<u8>) {
    let images = match open(bytes) {
        Ok(images) => images,
        Err(Error::Format { .. }) => return,
        Err(other) => panic!("{other:?}"),
    };
    for info in images.iter() {
        match images.load(info.tier, &info.entry) {
            Ok(_) | Err(Error::Format { .. }) => {}
            Err(other) => panic!("{other:?}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damage_is_an_error_not_a_panic(
        cut in any::<prop::sample::Index>(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0u8..8), 0..4),
        truncate in any::<bool>(),
    ) {
        let text = manifest(&[kernel("k", ("", "")), kernel("m", ("", ""))]);
        let mut bytes = archive(&[
            ("manifest.json", text.as_bytes()),
            ("k.ptx", b".version 8.3 .target sm_80"),
            ("m.ptx", &[b' '; 3000]),
        ]);
        for (at, bit) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
        }
        if truncate {
            bytes.truncate(cut.index(bytes.len()));
        }
        read_all(bytes);
    }
}

#[test]
fn a_flipped_bit_in_a_member_does_not_go_unnoticed() {
    let text = manifest(&[kernel("k", ("", ""))]);
    // Letters without a pattern, so that they stay long when packed.
    let letter = |i: u32| b'a' + (i.wrapping_mul(2_654_435_761) >> 16) as u8 % 23;
    let ptx: Vec<u8> = (0..2000u32).map(|i| letter(i * i + i)).collect();
    let whole = archive(&[("manifest.json", text.as_bytes()), ("k.ptx", &ptx)]);
    let name = whole.windows(5).position(|window| window == b"k.ptx").unwrap();
    // The middle of the packed data that follows the member's local header.
    let mut bytes = whole.clone();
    bytes[name + 5 + 60] ^= 4;
    let images = open(bytes).unwrap();
    assert!(matches!(images.load(Tier::Sm80, "k"), Err(Error::Format { .. })));
}

#[test]
fn the_embedded_images_are_there_for_every_tier() {
    for tier in Tier::ALL {
        let image = Images::embedded().load(tier, "vector_add").unwrap();
        assert!(
            image.ptx.contains(".entry vector_add") && image.ptx.contains(tier.name()),
            "{tier}"
        );
    }
}

#[test]
fn tiers_parse_as_they_print() {
    for tier in Tier::ALL {
        assert_eq!(tier.to_string().parse::<Tier>().unwrap(), tier);
    }
    for text in ["", "sm_90", "SM_80", "sm_80 ", "80", "sm_100a"] {
        let error = text.parse::<Tier>().unwrap_err().to_string();
        assert_eq!(error, format!("tier = {text}; allowed: sm_75, sm_80 or sm_90a"));
    }
}

#[test]
fn tiers_of_gpus() {
    let best = |major, minor| Tier::best_for(major, minor);
    assert_eq!((best(7, 0), best(7, 5)), (None, Some(Tier::Sm75)));
    assert_eq!((best(8, 0), best(8, 9)), (Some(Tier::Sm80), Some(Tier::Sm80)));
    assert_eq!(best(9, 0), Some(Tier::Sm90a));
    // `sm_90a` code runs on 9.0 alone.
    assert_eq!((best(10, 0), best(12, 0)), (Some(Tier::Sm80), Some(Tier::Sm80)));
    assert!(!Tier::Sm90a.runs_on(10, 0) && Tier::Sm75.runs_on(9, 0));
}
