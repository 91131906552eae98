//! `ferroflash` without arguments and `ferroflash generate`: what a newcomer sees first.

use std::{
    io::Read,
    process::{Command, Output, Stdio},
};

fn ferroflash(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ferroflash"))
        .args(arguments)
        .output()
        .unwrap()
}

/// Standard output and standard error of a run that must succeed.
fn succeeds(arguments: &[&str]) -> (String, String) {
    let output = ferroflash(arguments);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let (out, errors) = (text(output.stdout), text(output.stderr));
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {errors}");
    (out, errors)
}

/// The last line on standard error of a run that must fail, without a word on standard output.
fn fails(arguments: &[&str]) -> String {
    let output = ferroflash(arguments);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {errors}");
    assert!(output.stdout.is_empty(), "{arguments:?}");
    let last = errors.lines().last().unwrap();
    assert!(last.starts_with("ferroflash: "), "{errors}");
    last.to_owned()
}

/// The numbers in front of these words in a line.
fn number(line: &str, before: &str) -> f64 {
    let end = line.find(before).unwrap_or_else(|| panic!("no {before} in {line}"));
    line[..end].split_whitespace().next_back().unwrap().parse().unwrap()
}

#[test]
fn without_arguments_a_story_is_told_and_the_last_line_says_where_and_how_fast() {
    let (story, told) = succeeds(&[]);
    assert!(story.starts_with("Once upon a time"), "{story}");
    assert!(
        story.ends_with('\n') && story.split_whitespace().count() > 40,
        "{story}"
    );
    assert!(!story.contains('\u{fffd}'), "{story}");
    assert!(told.contains("ferroflash generate --model FOLDER"), "{told}");
    let last = told.lines().last().unwrap();
    assert!(last.starts_with("the emulator (") || last.contains("(cuda:"), "{last}");
    assert_eq!(number(last, " new tokens"), 64.0, "{last}");
    assert!(number(last, " tokens/s") > 0.0, "{last}");
    let first = last.split("the first after ").nth(1).unwrap();
    assert!(number(first, " s") < 20.0, "{last}");
}

#[test]
fn a_seed_gives_its_text_again_and_a_chat_answers_without_its_question() {
    let sampled = |seed| {
        let (text, _) = succeeds(&[
            "generate",
            "--device",
            "emulator",
            "--prompt",
            "Ben",
            "--temperature",
            "1.5",
            "--seed",
            seed,
            "--max-new-tokens",
            "8",
        ]);
        assert!(text.starts_with("Ben"), "{text}");
        text
    };
    let text = sampled("1");
    assert_eq!(text, sampled("1"));
    assert_ne!(text, sampled("2"));
    let question = "Tell me a story about a shy owl named Nora.";
    let (answer, told) = succeeds(&[
        "generate",
        "--device",
        "emulator",
        "--chat",
        "--prompt",
        question,
        "--max-new-tokens",
        "6",
        "--stats",
    ]);
    assert!(answer.len() > 6 && !answer.contains("Tell me"), "{answer}");
    assert!(
        told.contains("prompt tokens") && told.contains("MiB at most in tensors"),
        "{told}"
    );
}

#[test]
fn a_file_of_prompts_is_one_batch_with_answers_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prompts.txt");
    std::fs::write(&file, "Once upon a time\n\nOne morning\n").unwrap();
    let file = file.to_str().unwrap();
    let batch = [
        "generate",
        "--device",
        "emulator",
        "--max-new-tokens",
        "4",
        "--temperature",
        "0",
        "--prompt-file",
        file,
    ];
    let (together, _) = succeeds(&batch);
    let answers: Vec<&str> = together.lines().collect();
    assert_eq!(answers.len(), 2, "{together}");
    for (number, prompt) in ["Once upon a time", "One morning"].iter().enumerate() {
        let (alone, _) = succeeds(&[
            "generate",
            "--device",
            "emulator",
            "--max-new-tokens",
            "4",
            "--temperature",
            "0",
            "--prompt",
            prompt,
        ]);
        let answer = alone.trim_end().strip_prefix(prompt).unwrap();
        assert_eq!(answers[number], format!("[{number}] {answer}"));
    }
    std::fs::write(file, b"\xff\xfe").unwrap();
    assert!(fails(&batch).ends_with("prompts.txt: not UTF-8 at byte 0"));
    std::fs::write(file, "\n").unwrap();
    assert!(fails(&batch).ends_with("no prompt in it: one a line is expected"));
}

#[test]
fn what_cannot_be_is_said_in_a_line() {
    let emulator = ["generate", "--device", "emulator"];
    let with = |more: &[&str]| fails(&[&emulator, more].concat());
    let missing = with(&["--model", "/nowhere/at all"]);
    assert!(missing.contains("/nowhere/at all"), "{missing}");
    let long = with(&["--max-new-tokens", "5000"]);
    assert!(long.contains("together at most 1024 fit"), "{long}");
    let cold = with(&["--temperature=-1"]);
    assert!(cold.contains("temperature is -1"), "{cold}");
}

/// What was written before Ctrl-C stays, and the last line still says how fast it was.
#[cfg(unix)]
#[test]
fn ctrl_c_keeps_what_was_written() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_ferroflash"))
        .args([
            "generate",
            "--device",
            "emulator",
            "--max-new-tokens",
            "900",
            "--ignore-eos",
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = child.stdout.take().unwrap();
    // The prompt is written at once; what follows is the model's.
    let mut text = vec![0; "Once upon a time".len() + 1];
    out.read_exact(&mut text).unwrap();
    let sent = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(sent.success());
    out.read_to_end(&mut text).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    let (text, told) = (
        String::from_utf8(text).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    );
    assert!(text.starts_with("Once upon a time") && text.ends_with('\n'), "{text}");
    assert!(told.contains(" tokens/s, the first after "), "{told}");
}
