//! Attention: `O = softmax(mask(bias(softcap(scale · Q·Kᵀ)))) · V` by tiles with an online softmax.

pub mod mask;
pub mod params;
#[cfg(target_arch = "nvptx64")]
pub mod rows;
#[cfg(target_arch = "nvptx64")]
pub mod schedule;
#[cfg(target_arch = "nvptx64")]
pub mod softmax;

#[cfg(unit = "attention_forward_f32")]
pub mod forward_f32;
#[cfg(all(not(unit = "attention_forward_f32"), any(tier = "sm_75", tier = "sm_80")))]
pub mod forward_mma;
#[cfg(all(not(unit = "attention_forward_f32"), tier = "sm_90a"))]
pub mod forward_sm90;
