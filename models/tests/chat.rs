//! Chat templates as models have them.

use std::collections::BTreeMap;
use std::fs;

use models::{ChatError, ChatTemplate, Message, Role};
use serde_json::json;

fn tokens() -> [(String, String); 2] {
    [("bos_token".into(), "<s>".into()), ("eos_token".into(), "</s>".into())]
}

fn render(source: &str, messages: &[Message]) -> Result<String, ChatError> {
    ChatTemplate::new(source, tokens())?.render(messages, true)
}

fn conversation() -> Vec<Message> {
    vec![
        Message::new(Role::System, "Be brief."),
        Message::new(Role::User, " Hi <you> "),
        Message::new(Role::Assistant, "Hello."),
        Message::new(Role::User, "Bye"),
    ]
}

/// The shape of ChatML, as Qwen2 writes it.
#[test]
fn chatml() {
    let source = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful assistant<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    let text = render(source, &conversation()).unwrap();
    assert_eq!(
        text,
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Hi <you> <|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
    );
    let text = ChatTemplate::new(source, tokens())
        .unwrap()
        .render(&conversation()[1..2], false)
        .unwrap();
    assert!(
        text.starts_with("<|im_start|>system\nYou are") && text.ends_with("<|im_end|>\n"),
        "{text}"
    );
}

/// The shape of Llama 2 and Mistral: slices, namespaces, Python methods, refusals.
#[test]
fn instructions_in_brackets() {
    let source = "
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- set ns = namespace(n=0) %}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- set ns.n = ns.n + 1 %}
    {%- if message['role'] == 'user' %}
        {%- if loop.last and system_message is defined %}
            {{- '[INST] ' + system_message.strip() + '\\n\\n' + message['content'].strip() + '[/INST]' }}
        {%- else %}
            {{- '[INST] ' + message['content'] | trim + '[/INST]' }}
        {%- endif %}
    {%- elif message['role'] == 'assistant' %}
        {{- ' ' + message['content'] + eos_token}}
    {%- endif %}
{%- endfor %}
{{- '#' ~ ns.n }}
";
    assert_eq!(
        render(source, &conversation()).unwrap(),
        "<s>[INST] Hi <you>[/INST] Hello.</s>[INST] Be brief.\n\nBye[/INST]#3"
    );
    let error = render(source, &conversation()[2..]).unwrap_err();
    assert_eq!(
        error,
        ChatError::Refused("Conversation roles must alternate user/assistant/user/assistant/...".into())
    );
    assert!(
        error
            .to_string()
            .starts_with("the chat template refuses these messages: ")
    );
}

#[test]
fn json_is_written_as_python_writes_it() {
    let mut variables = BTreeMap::new();
    variables.insert(
        "tools".to_owned(),
        json!([{"name": "f<x>", "p": {"b": 1, "a": [true, null, 1.5]}, "s": "é\""}]),
    );
    let t = ChatTemplate::new("{{ tools | tojson }}\n{{ tools[0].p | tojson(indent=2) }}", tokens()).unwrap();
    let text = t.render_with(&[], false, &variables).unwrap();
    let (line, pretty) = text.split_once('\n').unwrap();
    assert_eq!(
        line,
        r#"[{"name": "f<x>", "p": {"b": 1, "a": [true, null, 1.5]}, "s": "é\""}]"#
    );
    assert_eq!(
        pretty,
        "{\n  \"b\": 1,\n  \"a\": [\n    true,\n    null,\n    1.5\n  ]\n}"
    );
}

#[test]
fn the_date_is_that_of_the_clock() {
    let noon = || {
        jiff::civil::date(2024, 7, 26)
            .at(12, 0, 0, 0)
            .to_zoned(jiff::tz::TimeZone::UTC)
            .unwrap()
    };
    let source = "{{ strftime_now('%d %b %Y') }}";
    let t = ChatTemplate::with_clock(source, tokens(), noon).unwrap();
    assert_eq!(t.render(&[], false).unwrap(), "26 Jul 2024");
    let bad = ChatTemplate::with_clock("{{ strftime_now('%!') }}", tokens(), noon).unwrap();
    assert!(matches!(bad.render(&[], false), Err(ChatError::Failed(_))));
}

#[test]
fn blocks_are_trimmed_and_generation_marks_print_nothing() {
    let source = "a\n  {% if true %}\nb\n  {% endif %}\n{%- generation -%} c {%- endgeneration -%} \nd{% generation %}e{% endgeneration %}\n";
    assert_eq!(render(source, &[]).unwrap(), "a\nb\ncde");
    assert_eq!(
        render(
            "{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}",
            &[]
        )
        .unwrap(),
        "01"
    );
    assert_eq!(
        render(
            "{{ {'a': 1}.items() | list | length }}{{ 'x,y'.split(',')[1] }}{{ none is none }}",
            &[]
        )
        .unwrap(),
        "1yTrue"
    );
}

#[test]
fn broken_and_endless_templates_are_errors() {
    assert!(matches!(
        ChatTemplate::new("{% if %}", tokens()),
        Err(ChatError::Malformed(_))
    ));
    assert!(matches!(
        ChatTemplate::new("{% generation", tokens()),
        Err(ChatError::Malformed(_))
    ));
    assert!(matches!(
        render("{{ messages[0].content.nothing.more }}", &conversation()),
        Err(ChatError::Failed(_))
    ));
    assert!(matches!(render("{% include 'file' %}", &[]), Err(ChatError::Failed(_))));
    let endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}";
    assert!(matches!(render(endless, &[]), Err(ChatError::Failed(_))));
    let recursive = "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}";
    assert!(matches!(render(recursive, &[]), Err(ChatError::Failed(_))));
}

#[test]
fn a_folder_has_its_template_in_one_of_two_places() {
    let dir = tempfile::tempdir().unwrap();
    assert!(ChatTemplate::from_folder(dir.path()).unwrap().is_none());
    let config = |v: serde_json::Value| fs::write(dir.path().join("tokenizer_config.json"), v.to_string()).unwrap();
    let rendered = || {
        ChatTemplate::from_folder(dir.path())
            .unwrap()
            .unwrap()
            .render(&[], false)
            .unwrap()
    };
    config(
        json!({"bos_token": {"content": "<s>", "lstrip": false}, "eos_token": null, "chat_template": "1{{ bos_token }}{{ eos_token }}"}),
    );
    assert_eq!(rendered(), "1<s>");
    config(json!({"chat_template": [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "2"}]}));
    assert_eq!(rendered(), "2");
    fs::write(dir.path().join("chat_template.jinja"), "3").unwrap();
    assert_eq!(rendered(), "3");
    fs::remove_file(dir.path().join("chat_template.jinja")).unwrap();
    for (bad, says) in [
        (
            json!({"chat_template": [{"name": "rag", "template": "x"}]}),
            "no chat template \"default\": the file has rag",
        ),
        (json!({"chat_template": [{"name": 1}]}), "`chat_template`"),
        (json!({"chat_template": 5}), "`chat_template` is 5"),
        (json!({"bos_token": 5}), "`bos_token` is 5"),
        (json!([1]), "must be a JSON object"),
    ] {
        config(bad);
        let error = ChatTemplate::from_folder(dir.path()).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

/// Found by fuzzing: the end of a tag inside its beginning, and a tag without an end.
#[test]
fn tags_that_end_too_early_or_never_are_errors() {
    for source in ["{%}", "a {%} b {% c", "{% generation", "{%%}"] {
        let made = ChatTemplate::new(source, []);
        let outcome = made.and_then(|t| t.render(&[Message::new(Role::User, "Hello.")], true));
        assert!(outcome.is_err(), "{source:?}: {outcome:?}");
    }
}
