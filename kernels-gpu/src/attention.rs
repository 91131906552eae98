//! Attention: `O = softmax(mask(bias(softcap(scale · Q·Kᵀ)))) · V` by tiles with an online softmax.

pub mod mask;
pub mod params;
#[cfg(target_arch = "nvptx64")]
pub mod schedule;
#[cfg(target_arch = "nvptx64")]
pub mod softmax;

#[cfg(tier = "sm_90a")]
pub mod forward_sm90;
