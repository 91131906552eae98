//! A model on a device.

use std::path::Path;

use host::ops::RopeFrequencies;
use host::{AnyTensor, DType, Device};

use crate::chat::{ChatTemplate, Message};
use crate::checkpoint::Checkpoint;
use crate::config::{GenerationConfig, ModelConfig};
use crate::error::{Error, Result};
use crate::rope::RopeScaling;
use crate::session::Session;
use crate::tokenizer::Tokenizer;
use crate::weights::{Loader, Progress, Weights, dtype_of};

/// What is told about loading.
pub type ProgressFn<'a> = dyn FnMut(Progress) + 'a;

/// How a model is loaded.
#[derive(Default)]
pub struct LoadOptions<'a> {
    /// The dtype of weights, activations and cache: f32, f16 or bf16. `None` keeps that of the files, but turns bf16 into f32 on
    /// devices that cannot multiply bf16 (before compute capability 8.0).
    pub dtype: Option<DType>,
    /// Told after every few megabytes.
    pub progress: Option<Box<ProgressFn<'a>>>,
}

/// A model whose weights are on a device, with its tokenizer and chat template.
pub struct Model {
    pub(crate) device: Device,
    pub(crate) config: ModelConfig,
    pub(crate) dtype: DType,
    pub(crate) weights: Weights,
    /// Rotary frequencies for short texts, for models that rotate.
    pub(crate) rope: Option<RopeFrequencies>,
    name: String,
    generation: GenerationConfig,
    eos: Vec<u32>,
    tokenizer: Option<Tokenizer>,
    template: Option<ChatTemplate>,
}

impl Model {
    /// Loads the Hugging Face folder `folder`.
    ///
    /// # Errors
    /// Those of [`Checkpoint::open`] and [`Self::from_checkpoint`].
    pub fn load(folder: impl AsRef<Path>, device: &Device, options: LoadOptions<'_>) -> Result<Model> {
        Self::from_checkpoint(&Checkpoint::open(folder)?, device, options)
    }

    /// Puts an opened checkpoint on a device. A folder without `tokenizer.json` gives a model without a tokenizer.
    ///
    /// # Errors
    /// [`Error::TooLarge`] before anything is allocated, [`Error::Device`], and those of reading tokenizer and template.
    pub fn from_checkpoint(checkpoint: &Checkpoint, device: &Device, options: LoadOptions<'_>) -> Result<Model> {
        let config = checkpoint.config().clone();
        let tokenizer = checkpoint.has_tokenizer().then(|| checkpoint.tokenizer()).transpose()?;
        let template = checkpoint.chat_template()?;
        let dtype = match options.dtype {
            Some(dtype) => check_dtype(dtype)?,
            None => match checkpoint.weights().next().map(|(_, view)| dtype_of(view.dtype)) {
                Some(DType::BF16) if device.tier() == host::Tier::Sm75 => DType::F32,
                stored => stored.unwrap_or(DType::F32),
            },
        };
        let weights = Loader::new(checkpoint, device, dtype, options.progress).load()?;
        let rope = short_rope(&config, device)?;
        let folder = checkpoint.folder();
        Ok(Model {
            device: device.clone(),
            dtype,
            weights,
            rope,
            name: folder
                .file_name()
                .unwrap_or(folder.as_os_str())
                .to_string_lossy()
                .into_owned(),
            generation: checkpoint.generation().clone(),
            eos: checkpoint.eos().to_vec(),
            tokenizer,
            template,
            config,
        })
    }

    /// A model of these shapes with weights that mean nothing, without a tokenizer: to measure speed and memory.
    ///
    /// # Errors
    /// [`Error::Device`]; [`host::Error::Dtype`] for weights of another dtype than f32, f16 or bf16.
    pub fn random(config: ModelConfig, device: &Device, dtype: DType, seed: u64) -> Result<Model> {
        check_dtype(dtype)?;
        Ok(Model {
            device: device.clone(),
            dtype,
            weights: crate::weights::random(device, dtype, &config, seed)?,
            rope: short_rope(&config, device)?,
            name: format!("random-{}", config.family.name()),
            generation: GenerationConfig::default(),
            eos: Vec::new(),
            tokenizer: None,
            template: None,
            config,
        })
    }

    /// Its shapes and settings.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Most tokens that prompt and answer may have together. Dynamic scaling is there to go beyond the configuration's
    /// `max_position_embeddings`, by its factor.
    pub fn context(&self) -> usize {
        match self.config.rope().map(|rope| &rope.scaling) {
            Some(RopeScaling::Dynamic { factor, max_positions }) => (*max_positions as f64 * factor) as usize,
            _ => self.config.max_positions,
        }
    }

    /// The name of its folder.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The dtype of weights, activations and cache.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// How its makers sample from it.
    pub fn generation(&self) -> &GenerationConfig {
        &self.generation
    }

    /// The tokens that end a text.
    pub fn eos(&self) -> &[u32] {
        &self.eos
    }

    /// Its tokenizer, if the folder has one.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref()
    }

    /// Its chat template, if the folder has one.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// The tokens of a text as the model was trained on it.
    ///
    /// # Errors
    /// [`Error::NoTokenizer`]; those of [`Tokenizer::encode_bytes`].
    pub fn encode(&self, text: &[u8]) -> Result<Vec<u32>> {
        let tokenizer = self.tokenizer.as_ref().ok_or(Error::NoTokenizer)?;
        Ok(tokenizer.encode_bytes(text, true)?)
    }

    /// The tokens of a conversation up to where the model's answer begins.
    ///
    /// # Errors
    /// [`Error::NoTokenizer`], [`Error::NoChatTemplate`]; those of [`ChatTemplate::render`].
    pub fn encode_chat(&self, messages: &[Message]) -> Result<Vec<u32>> {
        let tokenizer = self.tokenizer.as_ref().ok_or(Error::NoTokenizer)?;
        let template = self.template.as_ref().ok_or(Error::NoChatTemplate)?;
        Ok(tokenizer.encode(&template.render(messages, true)?, false)?)
    }

    /// The logits of every position of `ids`, f32, `[ids.len(), vocab_size]`: row `i` judges token `i + 1`.
    ///
    /// # Errors
    /// [`Error::EmptyPrompt`], [`Error::UnknownToken`], [`Error::TooLong`], [`Error::CacheTooLarge`], [`Error::Device`].
    pub fn logits(&self, ids: &[u32]) -> Result<AnyTensor> {
        let mut session = Session::new(self, ids.len(), 0, 1)?;
        let sequence = session.start();
        session.all_logits(sequence, ids)
    }

    /// Refuses texts that the model cannot read or has no positions for.
    pub(crate) fn check_prompt(&self, ids: &[u32], answer: usize) -> Result<()> {
        let (vocab_size, most) = (self.config.vocab_size, self.context());
        if ids.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        if let Some(position) = ids.iter().position(|t| *t as usize >= vocab_size) {
            return Err(Error::UnknownToken {
                token: ids[position],
                position,
                vocab_size,
            });
        }
        if ids.len().saturating_add(answer) > most {
            return Err(Error::TooLong {
                prompt: ids.len(),
                answer,
                most,
                limit: "max_position_embeddings in config.json",
            });
        }
        Ok(())
    }
}

fn check_dtype(dtype: DType) -> Result<DType> {
    match dtype {
        DType::F32 | DType::F16 | DType::BF16 => Ok(dtype),
        dtype => {
            let allowed = "f32, f16 or bf16 for weights".into();
            Err(host::Error::Dtype {
                argument: "dtype",
                dtype,
                allowed,
            }
            .into())
        }
    }
}

fn short_rope(config: &ModelConfig, device: &Device) -> Result<Option<RopeFrequencies>> {
    let rope = config.rope().map(|rope| {
        let short = rope.frequencies(1);
        RopeFrequencies::new(device, &short.inv_freq, short.attention_factor)
    });
    Ok(rope.transpose()?)
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model")
            .field("name", &self.name)
            .field("family", &self.config.family)
            .field("dtype", &self.dtype)
            .field("device", &self.device)
            .finish_non_exhaustive()
    }
}
