//! Chat templates: from messages to the prompt a model was trained on, by the Jinja template that comes with it.
//!
//! The template is rendered as transformers renders it: blocks trimmed (`trim_blocks`, `lstrip_blocks`), Python's string, list and
//! dict methods, `raise_exception`, `strftime_now`, `tojson` as Python's `json.dumps` writes it, loop controls. It runs without
//! access to anything but its arguments, with a bound on its steps.

use std::collections::BTreeMap;
use std::path::Path;

use jiff::Zoned;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value as JinjaValue};
use minijinja::{Environment, ErrorKind};
use serde::Serialize;
use serde_json::Value;

use crate::checkpoint::Files;
use crate::config::{ConfigError, Fields, parse_object};
use crate::error::{Error, Result};

/// Largest template file that is read.
const BYTES: u64 = 16 << 20;
/// Most steps a template may take; real ones take a few thousand a message.
const FUEL: u64 = 50_000_000;
const NAME: &str = "chat_template";

/// What is wrong with a template or the messages given to it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChatError {
    /// The template is no valid Jinja.
    #[error("the chat template is malformed: {0}")]
    Malformed(String),
    /// The template itself refuses the messages, by `raise_exception`.
    #[error("the chat template refuses these messages: {0}")]
    Refused(String),
    /// The template fails on these messages.
    #[error("the chat template fails: {0}")]
    Failed(String),
    /// There is no template under this name.
    #[error("there is no chat template {wanted:?}: the file has {}", known.join(", "))]
    NoSuchTemplate {
        /// The name asked for.
        wanted: String,
        /// The names there are.
        known: Vec<String>,
    },
}

/// Who says something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions that stand above the conversation.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// The result of a tool.
    Tool,
    /// Any other role that a template knows.
    #[serde(untagged)]
    Other(String),
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// What they say.
    pub content: String,
}

impl Message {
    /// A message.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self {
            role,
            content: content.into(),
        }
    }
}

/// A parsed chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// `bos_token`, `eos_token` and the like, as the template knows them.
    tokens: BTreeMap<String, String>,
}

impl ChatTemplate {
    /// Parses a template; `tokens` are the names and texts of special tokens it may use, such as `bos_token` and `<s>`.
    ///
    /// # Errors
    /// [`ChatError::Malformed`].
    pub fn new(source: &str, tokens: impl IntoIterator<Item = (String, String)>) -> Result<Self, ChatError> {
        Self::with_clock(source, tokens, Zoned::now)
    }

    /// [`Self::new`] with the clock that `strftime_now` reads.
    ///
    /// # Errors
    /// [`ChatError::Malformed`].
    pub fn with_clock(
        source: &str,
        tokens: impl IntoIterator<Item = (String, String)>,
        clock: impl Fn() -> Zoned + Send + Sync + 'static,
    ) -> Result<Self, ChatError> {
        let mut env = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        env.set_syntax(syntax.map_err(|e| ChatError::Malformed(told(&e)))?);
        env.set_fuel(Some(FUEL));
        env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        env.add_filter("tojson", to_json);
        env.add_function(
            "raise_exception",
            |message: String| -> Result<String, minijinja::Error> {
                Err(minijinja::Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Raised(message)))
            },
        );
        env.add_function(
            "strftime_now",
            move |format: String| -> Result<String, minijinja::Error> {
                jiff::fmt::strtime::format(&format, &clock()).map_err(|e| {
                    minijinja::Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {e}"))
                })
            },
        );
        env.add_template_owned(NAME, without_generation_tags(source))
            .map_err(|e| ChatError::Malformed(told(&e)))?;
        Ok(Self {
            environment: env,
            tokens: tokens.into_iter().collect(),
        })
    }

    /// Reads the template of a model folder: `chat_template.jinja`, else `chat_template` in `tokenizer_config.json` (the one named
    /// `default` where there are several). `None` when there is none.
    ///
    /// # Errors
    /// A file cannot be read or understood, or the template is malformed.
    pub fn from_folder(folder: &Path) -> Result<Option<Self>> {
        Self::from_files(&Files::folder(folder))
    }

    pub(crate) fn from_files(files: &Files) -> Result<Option<Self>> {
        const CONFIG: &str = "tokenizer_config.json";
        const FILE: &str = "chat_template.jinja";
        let config = if files.exists(CONFIG) {
            files.read(CONFIG, BYTES)?
        } else {
            b"{}".to_vec()
        };
        let at_config = |e| Error::config(&files.path(CONFIG), e);
        let map = parse_object(&config).map_err(at_config)?;
        let tokens = special_tokens(&map).map_err(at_config)?;
        let source = if files.exists(FILE) {
            let bytes = files.read(FILE, BYTES)?;
            let text = String::from_utf8(bytes).map_err(|e| ChatError::Malformed(format!("it is not UTF-8: {e}")))?;
            Some(text)
        } else {
            named_template(&map, "default").map_err(at_config)??
        };
        Ok(source.map(|s| Self::new(&s, tokens)).transpose()?)
    }

    /// The prompt for `messages`. `add_generation_prompt` ends it with what begins an answer.
    ///
    /// # Errors
    /// [`ChatError::Refused`] when the template says that it was not made for these messages, [`ChatError::Failed`] otherwise.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, ChatError> {
        self.render_with(messages, add_generation_prompt, &BTreeMap::new())
    }

    /// [`Self::render`] with further variables, such as `enable_thinking` or `tools`.
    ///
    /// # Errors
    /// Those of [`Self::render`].
    pub fn render_with(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        variables: &BTreeMap<String, Value>,
    ) -> Result<String, ChatError> {
        let mut context: BTreeMap<&str, JinjaValue> = BTreeMap::new();
        for (name, value) in variables {
            context.insert(name, JinjaValue::from(Serde(value)));
        }
        for (name, token) in &self.tokens {
            context.insert(name, JinjaValue::from(token.as_str()));
        }
        context.insert("messages", JinjaValue::from(Serde(messages)));
        context.insert("add_generation_prompt", JinjaValue::from(add_generation_prompt));
        let template = self
            .environment
            .get_template(NAME)
            .map_err(|e| ChatError::Malformed(told(&e)))?;
        template.render(context).map_err(|e| match raised(&e) {
            Some(message) => ChatError::Refused(message),
            None => ChatError::Failed(told(&e)),
        })
    }
}

/// A message from `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn raised(error: &minijinja::Error) -> Option<String> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(e) = cause {
        if let Some(Raised(message)) = e.downcast_ref() {
            return Some(message.clone());
        }
        cause = e.source();
    }
    None
}

/// The message with the line of the template.
fn told(error: &minijinja::Error) -> String {
    match error.line() {
        Some(line) => format!("{error} at line {line}"),
        None => error.to_string(),
    }
}

/// The template without `{% generation %}` and `{% endgeneration %}`, which mark the answers for training and print nothing.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (text, tag) = rest.split_at(at);
        // `{%}` is no tag: its end must come after its beginning. What has no end is left for the engine to name.
        let Some(end) = tag[2..].find("%}") else { break };
        out.push_str(text);
        let (tag, after) = tag.split_at(end + 4);
        let word = tag[2..tag.len() - 2].trim_matches(['-', '+', ' ', '\t', '\n', '\r']);
        if word == "generation" || word == "endgeneration" {
            // A comment takes the same white space with it as the tag would.
            let begin = if tag[2..].starts_with('-') { "{#-" } else { "{#" };
            let stop = if tag[..tag.len() - 2].ends_with('-') {
                "-#}"
            } else {
                "#}"
            };
            out.push_str(begin);
            out.push_str(stop);
        } else {
            out.push_str(tag);
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// `bos_token` and the like: strings, or objects with a `content`.
fn special_tokens(map: &serde_json::Map<String, Value>) -> Result<BTreeMap<String, String>, ConfigError> {
    let fields = Fields::new(map);
    let mut tokens = BTreeMap::new();
    for name in [
        "bos_token",
        "eos_token",
        "unk_token",
        "pad_token",
        "sep_token",
        "cls_token",
    ] {
        let text = match fields.raw(name) {
            None => continue,
            Some(Value::String(s)) => s,
            Some(Value::Object(o)) => match o.get("content") {
                Some(Value::String(s)) => s,
                _ => return Err(fields.invalid(name, "a string, or an object with a string `content`")),
            },
            Some(_) => return Err(fields.invalid(name, "a string, or an object with a string `content`")),
        };
        tokens.insert(name.to_owned(), text.clone());
    }
    Ok(tokens)
}

/// The template called `wanted`: the only one there is, or one of a list of `{name, template}`.
fn named_template(
    map: &serde_json::Map<String, Value>,
    wanted: &str,
) -> Result<Result<Option<String>, ChatError>, ConfigError> {
    let fields = Fields::new(map);
    let allowed = "a template, or a list of objects with the strings `name` and `template`";
    match fields.raw("chat_template") {
        None => Ok(Ok(None)),
        Some(Value::String(s)) => Ok(Ok(Some(s.clone()))),
        Some(Value::Array(list)) => {
            let mut known = Vec::new();
            for item in list {
                let text = |key: &str| item.get(key).and_then(Value::as_str);
                let (Some(name), Some(template)) = (text("name"), text("template")) else {
                    return Err(fields.invalid("chat_template", allowed));
                };
                if name == wanted {
                    return Ok(Ok(Some(template.to_owned())));
                }
                known.push(name.to_owned());
            }
            Ok(Err(ChatError::NoSuchTemplate {
                wanted: wanted.to_owned(),
                known,
            }))
        }
        Some(_) => Err(fields.invalid("chat_template", allowed)),
    }
}

/// Python's `json.dumps(value, ensure_ascii=False, indent=indent)`.
fn to_json(value: &JinjaValue, kwargs: Kwargs) -> Result<String, minijinja::Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    // Templates written for transformers may name these; only their defaults have an effect on what models were trained on.
    let _ = (
        kwargs.get::<Option<bool>>("ensure_ascii")?,
        kwargs.get::<Option<bool>>("sort_keys")?,
    );
    kwargs.assert_all_used()?;
    let failed = |e: String| minijinja::Error::new(ErrorKind::BadSerialization, e);
    let mut out = Vec::new();
    let done = match indent {
        Some(n) => {
            let blanks = vec![b' '; n.min(64)];
            let pretty = serde_json::ser::PrettyFormatter::with_indent(&blanks);
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, pretty))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, Spaced)),
    };
    done.map_err(|e| failed(e.to_string()))?;
    String::from_utf8(out).map_err(|e| failed(e.to_string()))
}

/// JSON on one line with a blank after `,` and `:`, as Python writes it.
struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }
    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, w: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }
    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        w.write_all(b": ")
    }
}
