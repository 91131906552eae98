//! Models by their names on the Hugging Face hub, `organisation/model`.
//!
//! With the feature `hub` the files are downloaded into the cache that the hub's own tools share (`HF_HOME`, `HF_ENDPOINT` and the
//! token of `hf auth login` count); what is there already is not fetched again. Without it a name that is no folder is an error
//! that says so.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The name on the hub that a path may be: two parts, no more, of letters, digits, `-`, `_` and `.`, as the hub's names are.
pub fn hub_name(path: &Path) -> Option<&str> {
    let text = path.to_str()?;
    let (organisation, model) = text.split_once('/')?;
    let part = |part: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
        part.len() <= 96 && part.chars().all(allowed) && edge(part.chars().next()) && edge(part.chars().last())
    };
    (part(organisation) && part(model) && !text.contains("..") && !text.contains("--")).then_some(text)
}

/// The folder of a model: `path` itself if there is such a file or folder, or if it can be no name on the hub; else the folder
/// that the hub's model of this name is downloaded to.
///
/// # Errors
/// [`Error::NoHub`] for a name without the feature `hub`; [`Error::Hub`] when the hub refuses or is not reached.
pub fn resolve(path: &Path) -> Result<PathBuf> {
    match hub_name(path) {
        Some(name) if !path.exists() => fetch(name),
        _ => Ok(path.to_owned()),
    }
}

#[cfg(not(feature = "hub"))]
fn fetch(name: &str) -> Result<PathBuf> {
    Err(Error::NoHub { name: name.into() })
}

#[cfg(feature = "hub")]
fn fetch(name: &str) -> Result<PathBuf> {
    use hf_hub::api::sync::ApiBuilder;

    let wrong = |why: String| Error::Hub { name: name.into(), why };
    let api = ApiBuilder::from_env().build().map_err(|e| wrong(e.to_string()))?;
    let repository = api.model(name.into());
    let info = match repository.info() {
        Ok(info) => info,
        // Not online: what was downloaded before does.
        Err(error) => {
            let cached = hf_hub::Cache::from_env().model(name.into()).get("config.json");
            let folder = cached.as_deref().and_then(Path::parent);
            return folder.map(Path::to_owned).ok_or_else(|| wrong(error.to_string()));
        }
    };
    let names: Vec<&str> = info.siblings.iter().map(|file| file.rfilename.as_str()).collect();
    let mut folder = None;
    for file in wanted(&names) {
        let path = repository.get(file).map_err(|e| wrong(format!("{file}: {e}")))?;
        folder = path.parent().map(Path::to_owned);
    }
    folder.ok_or_else(|| wrong("it has no config.json and no safetensors".into()))
}

/// The files of a model that are read: settings and tokenizer, and one set of weights.
#[cfg(any(feature = "hub", test))]
fn wanted<'a>(names: &[&'a str]) -> Vec<&'a str> {
    const SETTINGS: [&str; 6] = [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "model.safetensors.index.json",
    ];
    const SINGLE: &str = "model.safetensors";
    let single = names.contains(&SINGLE);
    let shard = |name: &str| name.starts_with("model-") && name.ends_with(".safetensors");
    let weights = |name: &str| if single { name == SINGLE } else { shard(name) };
    let is_wanted = |name: &str| SETTINGS.contains(&name) || weights(name);
    names.iter().copied().filter(|name| is_wanted(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_hub_are_told_from_paths() {
        for name in [
            "meta-llama/Llama-3.2-1B",
            "Qwen/Qwen2.5-0.5B-Instruct",
            "a/b",
            "openai-community/gpt2",
        ] {
            assert_eq!(hub_name(Path::new(name)), Some(name));
        }
        for path in [
            "gpt2",
            "/models/gpt2",
            "./models/gpt2",
            "../gpt2",
            "a/b/c",
            "a/",
            "/b",
            "a//b",
            "a/b c",
            "-a/b",
            "a/b-",
            "a/.b",
            "a/b..c",
            "a/b--c",
            "ä/b",
            "a\\b",
            "",
            "models/",
        ] {
            assert_eq!(hub_name(Path::new(path)), None, "{path}");
        }
        assert_eq!(hub_name(Path::new(&format!("a/{}", "b".repeat(97)))), None);
    }

    #[test]
    fn what_is_there_is_a_folder_and_what_cannot_be_a_name_stays_a_path() {
        let there = tempfile::tempdir().unwrap();
        assert_eq!(resolve(there.path()).unwrap(), there.path());
        assert_eq!(resolve(Path::new("./no/such")).unwrap(), Path::new("./no/such"));
        // Relative, and shaped like a name: a folder wins.
        assert!(Path::new("src/checkpoint").is_dir(), "tests run in the crate's folder");
        assert_eq!(
            resolve(Path::new("src/checkpoint")).unwrap(),
            Path::new("src/checkpoint")
        );
    }

    #[test]
    fn one_set_of_weights_is_wanted() {
        let sharded = [
            "README.md",
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "original/consolidated.00.pth",
            "pytorch_model.bin",
            "tokenizer.json",
        ];
        let wanted_of_sharded = wanted(&sharded);
        assert_eq!(
            wanted_of_sharded,
            [
                "config.json",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "model.safetensors.index.json",
                "tokenizer.json",
            ]
        );
        let both = [
            "model-00001-of-00001.safetensors",
            "model.safetensors",
            "onnx/model.onnx",
        ];
        assert_eq!(wanted(&both), ["model.safetensors"]);
    }

    #[cfg(not(feature = "hub"))]
    #[test]
    fn without_the_feature_the_error_names_it() {
        let error = resolve(Path::new("no-such-org/no-such-model")).unwrap_err().to_string();
        assert!(error.contains("no-such-org/no-such-model"), "{error}");
        assert!(error.contains("--features hub"), "{error}");
    }
}
