#!/usr/bin/env python3
# Copyright the ferroflash authors. Apache-2.0, like the rest of the repository.
"""The first losses of the training example, computed by PyTorch in f32 on the CPU from the same start.

    python3 examples/train/reference.py > examples/train/reference.json      # PyTorch and NumPy; seconds

Weights and batches come from a counter-based integer generator (SplitMix64), the same here and in random.rs, so that no file
of weights is needed. The model is GPT-2's: learned positions, LayerNorm before each part, fused QKV, causal attention, GELU by
tanh, the table of tokens also as the last layer.
"""

import json
import math
import pathlib
import sys

import numpy as np
import torch
import torch.nn.functional as F

STEPS = 20
RUNS = {
    "tiny": {"layers": 2, "heads": 2, "width": 32, "context": 32, "batch": 4, "learning_rate": 3e-3, "weight_decay": 0.1,
             "seed": 1},
    "default": {"layers": 4, "heads": 4, "width": 128, "context": 128, "batch": 16, "learning_rate": 1e-3, "weight_decay": 0.1,
                "seed": 1},
}
VOCABULARY = 256
BATCHES = 1 << 32  # the stream of batches; streams below are those of parameters


def draw(seed, index):
    """SplitMix64: number `index` (an array) of stream `seed`."""
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + (np.asarray(index, np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


class Weights:
    """Parameters in the order in which gpt.rs makes them: the number of a tensor is its stream."""

    def __init__(self, seed):
        self.seed, self.all = seed, []

    def add(self, values):
        self.all.append(torch.tensor(values, dtype=torch.float32, requires_grad=True))
        return self.all[-1]

    def normal_like(self, shape, deviation):
        """Evenly spread numbers with this standard deviation."""
        stream = draw(self.seed, len(self.all))
        bits = draw(stream, np.arange(math.prod(shape))) >> np.uint64(40)
        unit = bits.astype(np.float64) / 16777216.0 - 0.5
        return self.add((unit * (2.0 * math.sqrt(3.0) * deviation)).astype(np.float32).reshape(shape))

    def pair(self, n, k, deviation):
        return self.normal_like((n, k), deviation), self.add(np.zeros(n))

    def norm(self, n):
        return self.add(np.ones(n)), self.add(np.zeros(n))


def run(text, layers, heads, width, context, batch, learning_rate, weight_decay, seed):
    w = Weights(seed)
    tokens, positions = w.normal_like((VOCABULARY, width), 0.02), w.normal_like((context, width), 0.02)
    residual = 0.02 / math.sqrt(2.0 * layers)
    blocks = [{"norm1": w.norm(width), "qkv": w.pair(3 * width, width, 0.02), "out": w.pair(width, width, residual),
               "norm2": w.norm(width), "up": w.pair(4 * width, width, 0.02), "down": w.pair(width, 4 * width, residual)}
              for _ in range(layers)]
    last = w.norm(width)
    optimizer = torch.optim.AdamW([{"params": [p for p in w.all if p.dim() == 2], "weight_decay": weight_decay},
                                   {"params": [p for p in w.all if p.dim() == 1], "weight_decay": 0.0}],
                                  lr=learning_rate, betas=(0.9, 0.95), eps=1e-8)
    train = text[: len(text) // 10 * 9]
    losses = []
    for step in range(STEPS):
        at = draw(draw(seed, BATCHES), np.arange(step * batch, (step + 1) * batch)) % np.uint64(len(train) - context)
        rows = torch.tensor(np.stack([train[int(a):int(a) + context + 1] for a in at]).astype(np.int64))
        x = F.embedding(rows[:, :-1], tokens) + positions
        for block in blocks:
            h = F.layer_norm(x, (width,), *block["norm1"])
            q, k, v = F.linear(h, *block["qkv"]).view(batch, context, 3, heads, width // heads).unbind(2)
            a = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True)
            x = x + F.linear(a.transpose(1, 2).reshape(batch, context, width), *block["out"])
            h = F.layer_norm(x, (width,), *block["norm2"])
            x = x + F.linear(F.gelu(F.linear(h, *block["up"]), approximate="tanh"), *block["down"])
        logits = F.linear(F.layer_norm(x, (width,), *last), tokens)
        loss = F.cross_entropy(logits.view(-1, VOCABULARY), rows[:, 1:].reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main():
    text = np.frombuffer((pathlib.Path(__file__).parent / "stories.txt").read_bytes(), np.uint8)
    runs = {name: {**shape, "losses": [float(f"{loss:.9g}") for loss in run(text, **shape)]} for name, shape in RUNS.items()}
    json.dump({"made_by": f"examples/train/reference.py, PyTorch {torch.__version__}", "runs": runs}, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
