"""What PyTorch reaches on the cases of `ferroflash bench attention`: one JSON line a case and backend.

Needs a GPU and PyTorch. SDPA with the cuDNN and the flash backend, bf16, normal data, medians of CUDA events.
"""
import json
import sys

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

BACKENDS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}


def cases():
    for dim, heads in ((64, 32), (128, 16), (256, 8)):
        for seq in (512, 1024, 2048, 4096, 8192, 16384):
            for causal in (False, True):
                yield 16384 // seq, seq, heads, heads, dim, causal
    for seq in (4096, 8192, 16384):
        yield 1, seq, 32, 8, 128, True
        yield 1, seq, 64, 8, 128, True
    for seq, batch in ((128, 32), (256, 32), (512, 16), (512, 32)):
        yield batch, seq, 8, 8, 64, False


def median(run, runs):
    for _ in range(5):
        run()
    marks = []
    for _ in range(runs):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        marks.append((start, end))
    torch.cuda.synchronize()
    return sorted(a.elapsed_time(b) * 1e3 for a, b in marks)[runs // 2]


def in_graph(run, runs=20):
    """Microseconds of one of `runs` runs in a graph: what single events cannot resolve below 100 microseconds."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(runs):
            run()
    return median(graph.replay, 20) / runs


def main():
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    for batch, seq, heads, heads_kv, dim, causal in cases():
        q = torch.randn(batch, heads, seq, dim, device="cuda", dtype=torch.bfloat16)
        k = torch.randn(batch, heads_kv, seq, dim, device="cuda", dtype=torch.bfloat16)
        v = torch.randn_like(k)
        flops = 4 * batch * heads * seq * seq * dim / (2 if causal else 1)
        name = f"B{batch} H{heads}:{heads_kv} S{seq} D{dim}" + (" causal" if causal else "")
        for backend, kind in BACKENDS.items():
            try:
                with sdpa_kernel(kind):
                    run = lambda: F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=heads != heads_kv)
                    us = median(run, runs)
                    if us < 100:
                        us = in_graph(run)
                print(json.dumps({"case": name, "peer": backend, "us": round(us, 2), "tflops": round(flops / us / 1e6, 1)}), flush=True)
            except Exception as error:
                print(json.dumps({"case": name, "peer": backend, "error": str(error)[:80]}), flush=True)


if __name__ == "__main__":
    main()
