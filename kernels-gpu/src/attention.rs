//! Attention: `O = softmax(mask(bias(softcap(scale · Q·Kᵀ)))) · V` by tiles with an online softmax.

#[cfg(target_arch = "nvptx64")]
pub mod dropout;
pub mod mask;
pub mod params;
pub mod ring;
#[cfg(target_arch = "nvptx64")]
pub mod rows;
#[cfg(target_arch = "nvptx64")]
pub mod schedule;
#[cfg(target_arch = "nvptx64")]
pub mod softmax;

#[cfg(unit = "attention_backward_delta")]
pub mod backward_delta;
#[cfg(unit = "attention_backward_f32")]
pub mod backward_f32;
#[cfg(all(
    any(
        unit = "attention_backward_d64",
        unit = "attention_backward_d128",
        unit = "attention_backward_d256"
    ),
    tier = "sm_80"
))]
pub mod backward_in_turns;
#[cfg(any(
    unit = "attention_backward_d64",
    unit = "attention_backward_d128",
    unit = "attention_backward_d256"
))]
pub mod backward_mma;
#[cfg(all(
    any(unit = "attention_backward_d64", unit = "attention_backward_d128"),
    tier = "sm_90a"
))]
pub mod backward_once;
#[cfg(any(
    unit = "attention_backward_d64",
    unit = "attention_backward_d128",
    unit = "attention_backward_d256"
))]
pub mod backward_products;
#[cfg(all(
    any(
        unit = "attention_backward_d64",
        unit = "attention_backward_d128",
        unit = "attention_backward_d256"
    ),
    tier = "sm_90a"
))]
pub mod backward_sm90;
#[cfg(any(
    all(
        any(unit = "attention_backward_d64", unit = "attention_backward_d128"),
        not(tier = "sm_75")
    ),
    all(unit = "attention_backward_d256", tier = "sm_80")
))]
pub mod backward_sum;
#[cfg(unit = "attention_backward_tf32")]
pub mod backward_tf32;
#[cfg(all(
    any(
        unit = "attention_backward_d64",
        unit = "attention_backward_d128",
        unit = "attention_backward_d256",
        unit = "attention_backward_delta"
    ),
    not(tier = "sm_75")
))]
pub mod backward_turns;
#[cfg(any(unit = "attention_backward_tf32", unit = "attention_forward_tf32"))]
pub mod floats;
#[cfg(any(unit = "attention_backward_f32", unit = "attention_forward_f32"))]
pub mod fma;
#[cfg(unit = "attention_forward_f32")]
pub mod forward_f32;
#[cfg(all(
    any(
        unit = "attention_forward_d64",
        unit = "attention_forward_d96",
        unit = "attention_forward_d128",
        unit = "attention_forward_d192",
        unit = "attention_forward_d256"
    ),
    any(tier = "sm_75", tier = "sm_80")
))]
pub mod forward_mma;
#[cfg(all(
    any(
        unit = "attention_forward_d64",
        unit = "attention_forward_d96",
        unit = "attention_forward_d128",
        unit = "attention_forward_d192",
        unit = "attention_forward_d256"
    ),
    tier = "sm_90a"
))]
pub mod forward_sm90;
#[cfg(unit = "attention_forward_tf32")]
pub mod forward_tf32;
#[cfg(any(
    unit = "attention_backward_d64",
    unit = "attention_backward_d128",
    unit = "attention_backward_d256",
    unit = "attention_backward_delta",
    unit = "attention_backward_f32",
    unit = "attention_backward_tf32"
))]
pub mod gradient;
#[cfg(all(target_arch = "nvptx64", tier = "sm_90a"))]
pub mod hopper;
#[cfg(target_arch = "nvptx64")]
pub mod mma;
