"""Logits and greedy tokens of true configurations with random weights, beside transformers.

    python3 models/tools/true_shapes.py target/release/ferroflash [--device cuda]

For each configuration: transformers makes and saves a checkpoint in 16 bits, ferroflash computes the logits of a prompt and 64
greedy tokens, transformers the logits in f32 and in the 16-bit type. Asserts that ferroflash's relative error (root mean square,
against f32) is at most twice that of transformers' own 16-bit logits, and that every greedy token is the best one of the f32 model
unless a better one is within the error. Needs torch, transformers, safetensors, tokenizers.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

PROMPT, ANSWER = 160, 64


def configurations():
    llama3 = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    yield "GPT-2 124M", torch.float16, GPT2LMHeadModel, GPT2Config()
    yield "Llama-3.2-1B", torch.bfloat16, LlamaForCausalLM, LlamaConfig(
        vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, head_dim=64, max_position_embeddings=131072, rms_norm_eps=1e-5, rope_parameters=llama3,
        tie_word_embeddings=True)
    yield "Mistral-7B, 4 layers, window 100", torch.bfloat16, MistralForCausalLM, MistralConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=14336, num_hidden_layers=4, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, sliding_window=100, tie_word_embeddings=False)
    yield "Qwen2.5-1.5B, 6 layers", torch.bfloat16, Qwen2ForCausalLM, Qwen2Config(
        vocab_size=151936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=6, num_attention_heads=12,
        num_key_value_heads=2, max_position_embeddings=32768, rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=True)


def words(vocab):
    """A tokenizer whose text is the numbers of the tokens, so that text can be compared as tokens."""
    tokenizer = Tokenizer(models.WordLevel({f"t{i}": i for i in range(vocab)}, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def run(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)[:200]}\n{done.stderr}")
    return done


def measure(name, dtype, kind, config, program, device, folder):
    torch.manual_seed(0)
    model = kind(config).cuda()
    with torch.no_grad():
        # As a trained model has them: biases that are not zero, norms that are not one.
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.to(dtype).eval().save_pretrained(folder)
    words(config.vocab_size).save(str(folder / "tokenizer.json"))
    ids = torch.randint(0, config.vocab_size, (PROMPT,)).tolist()
    prompt = " ".join(f"t{i}" for i in ids)
    out = folder / "logits.safetensors"
    done = run([program, "generate", "--model", str(folder), "--device", device, "--prompt", prompt, "--temperature", "0",
                "--ignore-eos", "--max-new-tokens", str(ANSWER), "--stats", "--logits", str(out)])
    found = load_file(out)
    assert found["ids"].tolist() == ids, "the tokenizer gave other tokens"
    ours = found["logits"].cuda().double()
    said = [int(number) for number in re.findall(r"t(\d+)", done.stdout)]
    assert said[:PROMPT] == ids and len(said) == PROMPT + ANSWER, done.stdout[-300:]
    with torch.no_grad():
        batch = torch.tensor([ids], device="cuda")
        native = model(batch).logits[0].double()
        model.float()
        exact = model(batch).logits[0].double()
        judged = model(torch.tensor([said], device="cuda")).logits[0, PROMPT - 1:-1].double()
    size = exact.square().mean().sqrt()
    error = ((ours - exact).square().mean().sqrt() / size).item()
    allowed = 2 * ((native - exact).square().mean().sqrt() / size).item()
    best = judged.max(-1).values
    behind = (best - judged.gather(-1, torch.tensor(said[PROMPT:], device="cuda")[:, None])[:, 0]).max().item()
    most = 2 * (native - exact).abs().max().item()
    row = dict(model=name, dtype=str(dtype).split(".")[1], relative_error=error, allowed=allowed, greedy_behind=behind,
               greedy_allowed=most, told=done.stderr.strip().splitlines()[-1])
    print(json.dumps(row), flush=True)
    return error <= allowed and behind <= most


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("program")
    arguments.add_argument("--device", default="cuda")
    given = arguments.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    good = True
    for name, dtype, kind, config in configurations():
        with tempfile.TemporaryDirectory() as folder:
            good &= measure(name, dtype, kind, config, given.program, given.device, pathlib.Path(folder))
        torch.cuda.empty_cache()
    if not good:
        sys.exit("an error is larger than allowed")


if __name__ == "__main__":
    main()
