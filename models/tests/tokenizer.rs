//! Tokenizers of the two kinds there are: byte-level BPE (GPT-2, Llama 3, Qwen) and SentencePiece with byte fallback (Llama 2).

use models::{Tokenizer, TokenizerError};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

/// GPT-2's letters for bytes: printable ones stand for themselves, the others for letters from U+0100 on.
fn letters() -> Vec<char> {
    let printable = |b: u32| (33..=126).contains(&b) || (161..=172).contains(&b) || (174..=255).contains(&b);
    let mut next = 256;
    let letter = |b: u32| {
        if printable(b) {
            return char::from_u32(b).unwrap();
        }
        next += 1;
        char::from_u32(next - 1).unwrap()
    };
    (0..256).map(letter).collect()
}

/// Token `b` is byte `b`; 256 is "he", 257 " t", 258 the first two bytes of "€", 259 a special token.
fn byte_level() -> Value {
    let letters = letters();
    let of = |bytes: &[u8]| bytes.iter().map(|b| letters[*b as usize]).collect::<String>();
    let mut vocab: Map<String, Value> = (0..256u32).map(|b| (of(&[b as u8]), b.into())).collect();
    let pairs = [(&b"h"[..], &b"e"[..]), (b" ", b"t"), (b"\xE2", b"\x82")];
    for (i, (a, b)) in pairs.iter().enumerate() {
        vocab.insert(of(a) + &of(b), (256 + i).into());
    }
    let merges: Vec<[String; 2]> = pairs.iter().map(|(a, b)| [of(a), of(b)]).collect();
    json!({
        "version": "1.0", "truncation": {"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": null, "normalizer": null,
        "added_tokens": [{"id": 259, "content": "<|end|>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null, "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": merges}
    })
}

/// Llama 2's form: `▁` for a blank, bytes as `<0xE2>`, the first blank dropped when joined.
fn sentence_piece() -> Value {
    let mut vocab = Map::new();
    for token in ["<unk>", "<s>", "</s>"] {
        vocab.insert(token.to_owned(), vocab.len().into());
    }
    for b in 0..256 {
        vocab.insert(format!("<0x{b:02X}>"), vocab.len().into());
    }
    for token in ["▁", "a", "b", "▁a", "▁b", "ab"] {
        vocab.insert(token.to_owned(), vocab.len().into());
    }
    let special = |id: u32, s: &str| json!({"id": id, "content": s, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": true, "byte_fallback": true, "vocab": vocab, "merges": ["▁ a", "▁ b", "a b"]}
    })
}

fn tokenizer(json: &Value) -> Tokenizer {
    Tokenizer::from_json(json.to_string().as_bytes()).unwrap()
}

fn stream(t: &Tokenizer, ids: &[u32], skip_special: bool) -> Vec<String> {
    let mut d = t.detokenizer(skip_special);
    let mut pieces: Vec<String> = ids.iter().map(|id| d.push(*id).unwrap()).collect();
    pieces.push(d.finish().unwrap());
    pieces
}

#[test]
fn text_becomes_tokens_and_back_and_is_never_cut_by_a_file_s_truncation() {
    let t = tokenizer(&byte_level());
    assert_eq!(t.encode("he t", false).unwrap(), [256, 257]);
    assert_eq!(
        t.encode("the€<|end|>", false).unwrap(),
        [u32::from(b't'), 256, 258, 0xAC, 259]
    );
    assert_eq!(t.decode(&[116, 256, 258, 0xAC, 259], false).unwrap(), "the€<|end|>");
    assert_eq!(t.decode(&[116, 256, 258, 0xAC, 259], true).unwrap(), "the€");
    assert_eq!(
        (t.token_id("<|end|>"), t.is_special(259), t.is_special(256)),
        (Some(259), true, false)
    );
    assert_eq!(t.token(256).as_deref(), Some("he"));
    assert_eq!(t.vocabulary_size(), 260);
    let llama = tokenizer(&sentence_piece());
    assert_eq!(
        llama.decode(&llama.encode("a b ab", true).unwrap(), true).unwrap(),
        "a b ab"
    );
    assert_eq!(llama.encode("a", true).unwrap()[0], 1);
    assert_eq!(llama.encode("a", false).unwrap().len(), 1);
}

#[test]
fn a_stream_gives_out_whole_characters_only() {
    let t = tokenizer(&byte_level());
    let ids = t.encode("a€é😀z", false).unwrap();
    let pieces = stream(&t, &ids, true);
    assert_eq!(pieces, ["a", "", "€", "", "é", "", "", "", "😀", "z", ""]);
}

#[test]
fn what_a_blank_means_depends_on_what_is_before_it() {
    let t = tokenizer(&sentence_piece());
    let ids = t.encode("a b ab", true).unwrap();
    assert_eq!(stream(&t, &ids, true).concat(), "a b ab");
    let bytes: Vec<u32> = "é"
        .bytes()
        .map(|b| t.token_id(&format!("<0x{b:02X}>")).unwrap())
        .collect();
    let all = [t.token_id("▁a").unwrap(), bytes[0], bytes[1], t.token_id("▁b").unwrap()];
    assert_eq!(stream(&t, &all, true), ["a", "", "é", " b", ""]);
}

#[test]
fn bytes_that_are_no_text_come_out_as_replacement_characters_without_waiting_for_ever() {
    let t = tokenizer(&byte_level());
    let pieces = stream(&t, &[0x80; 40], true);
    assert_eq!(pieces.concat(), "\u{FFFD}".repeat(40));
    assert!(pieces[..20].iter().any(|p| !p.is_empty()), "{pieces:?}");
    // A character that begins in rubbish is still whole.
    let ids: Vec<u32> = [0xFF; 7].iter().copied().chain("😀€".bytes().map(u32::from)).collect();
    let pieces = stream(&t, &ids, true);
    assert_eq!(pieces.concat(), format!("{}😀€", "\u{FFFD}".repeat(7)));
    // An unfinished character at the very end.
    assert_eq!(stream(&t, &[u32::from(b'a'), 0xF0, 0x9F], true).concat(), "a\u{FFFD}");
}

#[test]
fn special_tokens_are_left_out_or_printed_as_asked() {
    let t = tokenizer(&byte_level());
    let ids = [vec![259; 30], vec![97, 259, 98]].concat();
    assert_eq!(stream(&t, &ids, true).concat(), "ab");
    assert_eq!(stream(&t, &[97, 259, 98], false).concat(), "a<|end|>b");
}

#[test]
fn a_tokenizer_of_another_model_and_text_that_is_no_text_are_refused() {
    let t = tokenizer(&byte_level());
    assert!(t.check_vocabulary(260).is_ok() && t.check_vocabulary(300).is_ok());
    let error = t.check_vocabulary(259).unwrap_err();
    assert!(
        matches!(
            error,
            TokenizerError::Vocabulary {
                largest: 259,
                vocab_size: 259
            }
        ),
        "{error}"
    );
    let error = t.encode_bytes(b"abc\xFFd", false).unwrap_err();
    assert_eq!(error.to_string(), "the text is not UTF-8: byte 0xff at position 3");
    for bad in ["", "{}", "[1]", r#"{"model": {"type": "BPE"}}"#] {
        assert!(
            matches!(
                Tokenizer::from_json(bad.as_bytes()),
                Err(TokenizerError::Malformed { .. })
            ),
            "{bad}"
        );
    }
    let mut merges = byte_level();
    merges["model"]["merges"] = json!([["no", "such"]]);
    assert!(Tokenizer::from_json(merges.to_string().as_bytes()).is_err());
    let mut template = sentence_piece();
    template["post_processor"]["single"][0]["SpecialToken"]["id"] = "<b>".into();
    let error = Tokenizer::from_json(template.to_string().as_bytes())
        .unwrap_err()
        .to_string();
    assert!(error.contains("uses \"<b>\""), "{error}");
    assert!(Tokenizer::from_file("/nowhere/tokenizer.json".as_ref()).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever tokens come, the stream gives what decoding them together gives.
    #[test]
    fn a_stream_is_the_text_of_its_tokens(ids in prop::collection::vec(prop_oneof![0u32..128, 0u32..260, 0xC0u32..0x100, 0x80u32..0xC0], 0..40), skip in any::<bool>()) {
        let t = tokenizer(&byte_level());
        let pieces = stream(&t, &ids, skip);
        prop_assert_eq!(pieces.concat(), t.decode(&ids, skip).unwrap());
    }

    #[test]
    fn every_text_survives(text in "\\PC{0,40}") {
        let t = tokenizer(&byte_level());
        let ids = t.encode(&text, false).unwrap();
        prop_assert_eq!(&t.decode(&ids, false).unwrap(), &text);
        prop_assert_eq!(stream(&t, &ids, false).concat(), text);
    }

    /// One changed byte in a file of either kind: refused, or a tokenizer that still works or says why not.
    #[test]
    fn a_changed_byte_of_a_file_never_panics(which in any::<bool>(), at in any::<prop::sample::Index>(), to in prop_oneof![32u8..127, any::<u8>()]) {
        let mut file = if which { byte_level() } else { sentence_piece() }.to_string().into_bytes();
        let at = at.index(file.len());
        file[at] = to;
        if let Ok(t) = Tokenizer::from_json(&file) {
            let ids = t.encode("the a b € <|end|>", true).unwrap_or_default();
            let _ = t.decode(&ids, false);
        }
    }
}
