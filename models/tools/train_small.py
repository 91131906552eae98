#!/usr/bin/env python3
# Copyright the ferroflash authors. Apache-2.0, like the rest of the repository.
"""Trains the two small models of this repository and writes what transformers computes with them.

Needs torch, transformers, tokenizers, safetensors and numpy, no network. About four minutes on one H200:

    python3 models/tools/train_small.py --out /tmp/small [--seconds 85] [--tar /tmp/small.tar]

writes, under --out (paths are those below models/):

    small/stories-gpt2/     GPT-2 shape, f16: learned positions, LayerNorm, GELU, fused QKV as Conv1D, tied head
    small/stories-llama/    Llama shape, bf16: RoPE, RMSNorm, SwiGLU, 4 query to 2 KV heads, tied head, chat template
        config.json model.safetensors tokenizer.json tokenizer_config.json generation_config.json
        reference.json reference.safetensors       f32 logits and greedy continuations of the weights as stored
    tests/fixtures/variants/NAME/                  config.json and f32 logits for made-up weights (see `made_up`) of every family
                                                   and RoPE scaling; the weights are a formula, so nothing else is stored
    tests/fixtures/rope.json                       inverse frequencies and attention factors of true configurations

The text comes from stories.py. Every part is on its own: when one fails, the others are still written and the failure is printed.
"""

import argparse
import json
import math
import os
import sys
import tarfile
import time
import traceback

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import stories as story_text  # noqa: E402

import numpy as np  # noqa: E402

VOCAB = 1536
CONTEXT = 512
STARTED = time.time()

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<|user|>' + message['content'] | trim }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|assistant|>' + message['content'] | trim + eos_token }}"
    "{% elif message['role'] == 'system' %}"
    "{{ raise_exception('this model was trained without system messages') }}"
    "{% else %}{{ raise_exception('unknown role ' + message['role']) }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

PROMPTS = [
    "Once upon a time",
    "Once upon a time there was a little fox named Ruby, who lived in",
    "Tom was a shy bear who lived on a farm with a big red barn. One rainy day, Tom could not find his",
    "Lily said, \"",
]
CHAT_PROMPTS = ["Tell me a story about a kind hedgehog named Hazel.", "Write a short story about a lost lantern."]


def log(*words):
    print(f"[{time.time() - STARTED:6.1f} s]", *words, flush=True)


def write_json(path, value):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, indent=2, ensure_ascii=False)
        f.write("\n")


# ---- tokenizers -------------------------------------------------------------------------------------------------------------

def gpt2_tokenizer(texts):
    """Byte-level BPE cut as GPT-2 cuts; one special token, which ends a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>",
              "unk_token": "<|endoftext|>", "model_max_length": CONTEXT, "clean_up_tokenization_spaces": False}
    return tok, config


def llama_tokenizer(texts):
    """Byte-level BPE cut by a pattern as Llama 3 cuts, a begin token before every text, and tokens for a conversation."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    tok = Tokenizer(models.BPE())
    pattern = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<|user|>", "<|assistant|>"]
    tok.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tok.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tok.token_to_id("<s>"))])
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "model_max_length": 2 * CONTEXT,
              "clean_up_tokenization_spaces": False, "chat_template": CHAT_TEMPLATE}
    return tok, config


def encode(tok, texts):
    return [e.ids for e in tok.encode_batch(list(texts), add_special_tokens=False)]


# ---- training ---------------------------------------------------------------------------------------------------------------

def gpt2_config(tok):
    from transformers import GPT2Config
    end = tok.token_to_id("<|endoftext|>")
    return GPT2Config(vocab_size=tok.get_vocab_size(), n_positions=CONTEXT, n_embd=192, n_layer=4, n_head=3, n_inner=512,
                      activation_function="gelu_new", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
                      bos_token_id=end, eos_token_id=end)


def llama_config(tok):
    from transformers import LlamaConfig
    return LlamaConfig(vocab_size=tok.get_vocab_size(), hidden_size=128, intermediate_size=352, num_hidden_layers=6,
                       num_attention_heads=4, num_key_value_heads=2, head_dim=64, max_position_embeddings=2 * CONTEXT,
                       rms_norm_eps=1e-5, tie_word_embeddings=True, attention_bias=False, mlp_bias=False,
                       rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
                       bos_token_id=tok.token_to_id("<s>"), eos_token_id=tok.token_to_id("</s>"))


def corpus(tok, family, texts, requests):
    """All tokens in one row, and where each text begins."""
    ids = encode(tok, texts)
    if family == "gpt2":
        end = [tok.token_to_id("<|endoftext|>")]
        rows = [t + end for t in ids]
    else:
        bos, eos, user, assistant = ([tok.token_to_id(t)] for t in ("<s>", "</s>", "<|user|>", "<|assistant|>"))
        asked = encode(tok, requests)
        rows = [bos + (user + q + assistant if i % 5 < 2 else []) + t + eos for i, (t, q) in enumerate(zip(ids, asked))]
    starts = np.cumsum([0] + [len(r) for r in rows[:-1]])
    return np.concatenate([np.asarray(r, dtype=np.int64) for r in rows]), starts


def train(model, tokens, starts, held_out, seconds, batch, lr, device):
    """AdamW for `seconds`; the learning rate follows the clock, so that a slow machine ends with a small rate too."""
    import torch
    import torch.nn.functional as F
    data = torch.from_numpy(tokens).to(device)
    begin = torch.from_numpy(starts[starts < len(tokens) - CONTEXT - 1]).to(device)
    check = torch.from_numpy(held_out[: (len(held_out) - 1) // CONTEXT * CONTEXT + 1]).to(device)
    span = torch.arange(CONTEXT + 1, device=device)
    decay = [p for p in model.parameters() if p.dim() >= 2]
    plain = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    try:
        opt = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=(device == "cuda"))
    except Exception:  # an older torch without the fused form
        opt = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))
    g = torch.Generator(device=device)
    g.manual_seed(7)

    def loss_of(x):
        with torch.autocast(device, dtype=torch.bfloat16, enabled=(device == "cuda")):
            out = model(input_ids=x[:, :-1], use_cache=False).logits
        return F.cross_entropy(out.float().flatten(0, 1), x[:, 1:].flatten())

    def held_out_loss():
        model.eval()
        with torch.no_grad():
            n = min(64, (len(check) - 1) // CONTEXT)
            x = torch.stack([check[i * CONTEXT: (i + 1) * CONTEXT + 1] for i in range(n)])
            value = loss_of(x).item()
        model.train()
        return value

    model.train()
    clock, step, seen = time.time(), 0, 0
    while True:
        done = (time.time() - clock) / seconds
        if done >= 1.0:
            break
        rate = lr * min(1.0, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * min(1.0, done)))
        for group in opt.param_groups:
            group["lr"] = rate
        # Half the rows begin where a story begins, as a prompt does; the other half anywhere.
        at = begin[torch.randint(len(begin), (batch,), generator=g, device=device)]
        anywhere = torch.randint(len(data) - CONTEXT - 1, (batch,), generator=g, device=device)
        at = torch.where(torch.arange(batch, device=device) % 2 == 0, at, anywhere)
        loss = loss_of(data[at[:, None] + span])
        opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        step += 1
        seen += batch * CONTEXT
        if step % 200 == 0 or step in (1, 10, 50):
            log(f"step {step:5d}  loss {loss.item():.4f}  rate {rate:.2e}  {seen / 1e6:.0f} M tokens")
    final = held_out_loss()
    log(f"{step} steps, {seen / 1e6:.0f} M tokens, held-out loss {final:.4f}")
    return {"steps": step, "tokens": seen, "held_out_loss": final}


def load(cls, folder, dtype, attention="eager"):
    try:
        return cls.from_pretrained(folder, dtype=dtype, attn_implementation=attention).eval()
    except TypeError:
        return cls.from_pretrained(folder, torch_dtype=dtype, attn_implementation=attention).eval()


def reference(cls, folder, tok, family, native, device):
    """f32 logits and greedy tokens of the stored weights; and how far the stored dtype itself is from f32 in transformers."""
    import torch
    from safetensors.torch import save_file
    model = load(cls, folder, torch.float32)
    asked = [(p, tok.encode(p).ids) for p in PROMPTS]
    if family == "llama":
        one = tok.token_to_id
        for p in CHAT_PROMPTS:
            asked.append((f"<|user|>{p}<|assistant|>", [one("<s>"), one("<|user|>")] + tok.encode(p, add_special_tokens=False).ids + [one("<|assistant|>")]))
    half = None
    if device == "cuda":
        try:
            half = load(cls, folder, native).to(device)
        except Exception:
            traceback.print_exc()
    tensors, rows = {}, []
    for n, (prompt, ids) in enumerate(asked):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()
            sequence, gaps = list(ids), []
            for _ in range(64):
                last = model(input_ids=torch.tensor([sequence]), use_cache=False).logits[0, -1].float()
                top = torch.topk(last, 2)
                gaps.append((top.values[0] - top.values[1]).item())
                sequence.append(int(top.indices[0]))
            whole = model(input_ids=torch.tensor([sequence]), use_cache=False).logits[0].float()
            error = {}
            if half is not None:
                low = half(input_ids=torch.tensor([sequence], device=device), use_cache=False).logits[0].float().cpu()
                error = {"rms": ((low - whole).pow(2).mean().sqrt() / whole.pow(2).mean().sqrt()).item(), "max": (low - whole).abs().max().item()}
        tensors[f"prompt{n}.ids"] = torch.tensor(ids, dtype=torch.int64)
        tensors[f"prompt{n}.logits"] = logits.contiguous()
        tensors[f"prompt{n}.greedy"] = torch.tensor(sequence[len(ids):], dtype=torch.int64)
        tensors[f"prompt{n}.gap"] = torch.tensor(gaps, dtype=torch.float32)
        tensors[f"prompt{n}.last_logits"] = whole[-1].contiguous()
        text = tok.decode(sequence[len(ids):], skip_special_tokens=False)
        rows.append({"prompt": prompt, "ids": ids, "greedy": sequence[len(ids):], "greedy_text": text, "smallest_gap": min(gaps), "native_dtype_error": error})
        log(f"{prompt!r} -> {text!r}")
        log(f"   smallest top-2 gap {min(gaps):.4f}, error of the stored dtype {error}")
    save_file(tensors, os.path.join(folder, "reference.safetensors"))
    import transformers
    write_json(os.path.join(folder, "reference.json"), {"made_with": {"torch": torch.__version__, "transformers": transformers.__version__, "dtype": "float32", "attention": "eager"}, "prompts": rows})


def sample(model, tok, ids, eos, count, temperature, device):
    import torch
    torch.manual_seed(3)
    with torch.no_grad():
        for _ in range(count):
            last = model(input_ids=torch.tensor([ids[-CONTEXT:]], device=device), use_cache=False).logits[0, -1].float()
            token = int(torch.multinomial(torch.softmax(last / temperature, -1), 1))
            if token == eos:
                break
            ids = ids + [token]
    return tok.decode(ids)


def small_model(family, out, seconds, batch, device, text_count):
    import torch
    from transformers import GPT2LMHeadModel, LlamaForCausalLM
    folder = os.path.join(out, "small", f"stories-{family}")
    os.makedirs(folder, exist_ok=True)
    told = list(story_text.stories(text_count, seed=1))
    texts, requests = [s.text for s in told], [story_text.request(s) for s in told]
    fresh = list(story_text.stories(400, seed=2))
    log(f"{family}: {len(texts)} stories, {sum(map(len, texts)) / 1e6:.1f} MB")
    learn = texts[:6000] + requests[:3000]
    tok, tok_config = gpt2_tokenizer(learn) if family == "gpt2" else llama_tokenizer(learn)
    tok.save(os.path.join(folder, "tokenizer.json"), pretty=False)
    write_json(os.path.join(folder, "tokenizer_config.json"), tok_config)
    tokens, starts = corpus(tok, family, texts, requests)
    held_out, _ = corpus(tok, family, [s.text for s in fresh], [story_text.request(s) for s in fresh])
    log(f"{family}: vocabulary {tok.get_vocab_size()}, {len(tokens) / 1e6:.1f} M tokens")

    torch.manual_seed(11)
    cls, config, native, lr = (GPT2LMHeadModel, gpt2_config(tok), torch.float16, 2e-3) if family == "gpt2" else (LlamaForCausalLM, llama_config(tok), torch.bfloat16, 3e-3)
    model = cls(config).to(device)
    log(f"{family}: {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters")
    summary = train(model, tokens, starts, held_out, seconds, batch, lr, device)
    model.eval()
    eos = config.eos_token_id
    try:
        first = tok.encode("Once upon a time").ids
        log(f"{family} sample:", sample(model, tok, first, eos, 220, 0.7, device))
        if family == "llama":
            chat = tok.encode("<|user|>Tell me a story about a shy owl named Nora.<|assistant|>").ids
            log(f"{family} chat sample:", sample(model, tok, chat, eos, 220, 0.7, device))
    except Exception:
        traceback.print_exc()
    model = model.to("cpu").to(native)
    model.save_pretrained(folder)
    write_json(os.path.join(folder, "generation_config.json"), {
        "bos_token_id": config.bos_token_id, "eos_token_id": eos, "do_sample": True, "temperature": 0.7, "top_k": 50, "top_p": 0.95})
    write_json(os.path.join(folder, "training.json"), {"script": "models/tools/train_small.py", "text": f"models/tools/stories.py, seed 1, {text_count} stories", **summary})
    log(f"{family}: model.safetensors has {os.path.getsize(os.path.join(folder, 'model.safetensors'))} bytes, tokenizer.json {os.path.getsize(os.path.join(folder, 'tokenizer.json'))}")
    reference(cls, folder, tok, family, native, device)


# ---- fixtures of every family with made-up weights --------------------------------------------------------------------------

def made_up(name, shape):
    """Weights as a formula of the tensor's name: SplitMix64 of (FNV-1a of the name) + i, of which the top 8 bits are a signed v.

    A norm's weight is 1 + floor(v / 16) / 32, a bias v / 1024, an embedding v / 128, any other matrix v / 512: all exact in f16, bf16 and f32.
    """
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = ((seed ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    with np.errstate(over="ignore"):
        z = (np.arange(int(np.prod(shape)), dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    v = (z >> np.uint64(56)).astype(np.int64)
    v = np.where(v >= 128, v - 256, v)
    part = name.split(".")
    if name.endswith(".bias"):
        w = v / 1024
    elif any("norm" in p or p.startswith("ln_") for p in part):
        w = 1.0 + (v // 16) / 32
    elif any(p in ("embed_tokens", "wte", "wpe") for p in part):
        w = v / 128
    else:
        w = v / 512
    return w.astype(np.float32).reshape(shape)


def variant_configs():
    """Name, model class, configuration. All take 48 tokens, more than `original` where the scaling depends on it."""
    from transformers import (GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM,
                              Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM)
    base = dict(vocab_size=96, hidden_size=128, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                head_dim=64, max_position_embeddings=64, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2, pad_token_id=None)
    default = {"rope_type": "default", "rope_theta": 10000.0}

    def llama(**more):
        return lambda: LlamaConfig(**{**base, "rope_parameters": default, **more})

    half = 32
    short, long = [1.0 + 0.05 * i for i in range(half)], [1.5 + 0.25 * i for i in range(half)]
    gpt2 = dict(vocab_size=96, n_positions=64, n_embd=128, n_layer=2, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=1, eos_token_id=2)
    return [
        ("gpt2", GPT2LMHeadModel, lambda: GPT2Config(**gpt2)),
        ("gpt2-inverse-layer-scale", GPT2LMHeadModel, lambda: GPT2Config(**{**gpt2, "n_inner": 160, "scale_attn_by_inverse_layer_idx": True})),
        ("llama", LlamaForCausalLM, llama(tie_word_embeddings=False)),
        ("llama-tied-biases", LlamaForCausalLM, llama(tie_word_embeddings=True, attention_bias=True, mlp_bias=True)),
        ("llama-mha-small-head", LlamaForCausalLM, llama(num_key_value_heads=4, head_dim=32, tie_word_embeddings=False)),
        ("llama-linear", LlamaForCausalLM, llama(rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5})),
        ("llama-dynamic", LlamaForCausalLM, llama(max_position_embeddings=16, rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0})),
        ("llama-yarn", LlamaForCausalLM, llama(rope_parameters={"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16})),
        ("llama-longrope", LlamaForCausalLM, llama(rope_parameters={"rope_type": "longrope", "rope_theta": 10000.0, "factor": 4.0, "short_factor": short, "long_factor": long, "original_max_position_embeddings": 16})),
        ("llama-llama3", LlamaForCausalLM, llama(rope_parameters={"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16})),
        ("mistral-window", MistralForCausalLM, lambda: MistralConfig(**{**base, "sliding_window": 8, "rope_parameters": default, "tie_word_embeddings": False})),
        ("qwen2", Qwen2ForCausalLM, lambda: Qwen2Config(**{**{k: v for k, v in base.items() if k != "head_dim"}, "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}, "tie_word_embeddings": True, "use_sliding_window": False})),
        ("qwen2-window", Qwen2ForCausalLM, lambda: Qwen2Config(**{**{k: v for k, v in base.items() if k != "head_dim"}, "rope_parameters": default, "tie_word_embeddings": False, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1})),
        ("qwen3", Qwen3ForCausalLM, lambda: Qwen3Config(**{**base, "head_dim": 64, "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}, "tie_word_embeddings": True})),
    ]


def variants(out):
    import torch
    from safetensors.torch import save_file
    for name, cls, make in variant_configs():
        try:
            config = make()
            try:
                config._attn_implementation = "eager"
            except Exception:
                pass
            model = cls(config).float().eval()
            with torch.no_grad():
                for key, p in model.named_parameters():
                    p.copy_(torch.from_numpy(made_up(key, tuple(p.shape))))
                ids = torch.from_numpy((np.arange(48, dtype=np.int64) * 37 + 5) % 96)
                logits = model(input_ids=ids[None], use_cache=False).logits[0].float()
            folder = os.path.join(out, "tests", "fixtures", "variants", name)
            os.makedirs(folder, exist_ok=True)
            config.architectures = [cls.__name__]
            config.save_pretrained(folder)
            save_file({"ids": ids, "logits": logits.contiguous()}, os.path.join(folder, "reference.safetensors"))
            write_json(os.path.join(folder, "names.json"), {key: list(p.shape) for key, p in model.named_parameters()})
            log(f"variant {name}: rms logit {logits.pow(2).mean().sqrt().item():.3f}, finite {bool(torch.isfinite(logits).all())}")
        except Exception:
            log(f"variant {name} FAILED")
            traceback.print_exc()


def rope(out):
    import torch
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
    short64 = [1.0 + 0.02 * i for i in range(48)]
    long64 = [1.0 + 0.7 * i for i in range(48)]
    cases = {
        "default-128": (dict(head_dim=128, max_position_embeddings=4096), {"rope_type": "default", "rope_theta": 10000.0}, 16),
        "linear-128": (dict(head_dim=128, max_position_embeddings=16384), {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}, 16),
        "dynamic-128-short": (dict(head_dim=128, max_position_embeddings=4096), {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}, 16),
        "dynamic-128-long": (dict(head_dim=128, max_position_embeddings=4096), {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}, 6000),
        "yarn-128-qwen2.5": (dict(head_dim=128, max_position_embeddings=131072), {"rope_type": "yarn", "rope_theta": 1000000.0, "factor": 4.0, "original_max_position_embeddings": 32768}, 16),
        "yarn-64-mscale": (dict(head_dim=64, max_position_embeddings=163840), {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 40.0, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 0.8, "original_max_position_embeddings": 4096}, 16),
        "yarn-64-no-truncate": (dict(head_dim=64, max_position_embeddings=131072), {"rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False, "original_max_position_embeddings": 4096}, 16),
        "longrope-96-short": (dict(head_dim=96, max_position_embeddings=131072), {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": short64, "long_factor": long64, "factor": 32.0, "original_max_position_embeddings": 4096}, 16),
        "longrope-96-long": (dict(head_dim=96, max_position_embeddings=131072), {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": short64, "long_factor": long64, "factor": 32.0, "original_max_position_embeddings": 4096}, 5000),
        "llama3.1-128": (dict(head_dim=128, max_position_embeddings=131072), {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}, 16),
        "llama3.2-64": (dict(head_dim=64, max_position_embeddings=131072), {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}, 16),
    }
    rows = []
    for name, (shape, parameters, length) in cases.items():
        try:
            config = LlamaConfig(vocab_size=32, hidden_size=4 * shape["head_dim"], intermediate_size=32, num_hidden_layers=1, num_attention_heads=4, rope_parameters=dict(parameters), **shape)
            r = LlamaRotaryEmbedding(config)
            positions = torch.arange(length)[None]
            cos, sin = r(torch.zeros(1, 1, 1), positions)
            at = [0, 1, 7, length - 1]
            half = shape["head_dim"] // 2
            rows.append({"name": name, "head_dim": shape["head_dim"], "max_position_embeddings": shape["max_position_embeddings"], "rope_parameters": parameters,
                         "length": length, "inv_freq": r.inv_freq.double().tolist(), "attention_factor": float(r.attention_scaling),
                         "positions": at, "cos": [cos[0, i, :half].double().tolist() for i in at], "sin": [sin[0, i, :half].double().tolist() for i in at]})
            log(f"rope {name}: attention factor {rows[-1]['attention_factor']:.6f}, last inverse frequency {rows[-1]['inv_freq'][-1]:.3e}")
        except Exception:
            log(f"rope {name} FAILED")
            traceback.print_exc()
    path = os.path.join(out, "tests", "fixtures", "rope.json")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as f:
        json.dump(rows, f)
        f.write("\n")


def guarded(what, call, *args):
    try:
        call(*args)
        return True
    except Exception:
        log(f"{what} FAILED")
        traceback.print_exc()
        return False


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", required=True, help="folder to write")
    p.add_argument("--tar", help="also put the folder into this tar file")
    p.add_argument("--seconds", type=float, default=85.0, help="training time of each model")
    p.add_argument("--batch", type=int, default=128)
    p.add_argument("--stories", type=int, default=40000)
    p.add_argument("--only", choices=["gpt2", "llama", "fixtures", "all"], default="all")
    a = p.parse_args()
    os.makedirs(a.out, exist_ok=True)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    device = "cuda" if torch.cuda.is_available() else "cpu"
    log("torch", torch.__version__, "on", torch.cuda.get_device_name(0) if device == "cuda" else "the CPU")
    good = True
    if a.only in ("fixtures", "all"):
        good &= guarded("rope fixtures", rope, a.out)
        good &= guarded("variant fixtures", variants, a.out)
    for family in ("gpt2", "llama"):
        if a.only in (family, "all"):
            good &= guarded(f"small model {family}", small_model, family, a.out, a.seconds, a.batch, device, a.stories)
    if a.tar:
        with tarfile.open(a.tar, "w") as t:
            t.add(a.out, arcname=".")
        log(f"{a.tar}: {os.path.getsize(a.tar)} bytes")
    log("done" if good else "done, with failures above")
    return 0


if __name__ == "__main__":
    sys.exit(main())
