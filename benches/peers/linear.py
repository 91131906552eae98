"""Linear layers beside PyTorch (cuBLASLt), in turns on one GPU: python3 benches/peers/linear.py BENCH [--rounds N]

BENCH is the executable of `cargo bench --bench linear --no-run`. Each row is sampled alternately, both sides as a CUDA
graph of several launches, over several copies of the weights where they would fit into L2. Prints one JSON line a row:
medians in microseconds and the ratio peer / ours (above 1: ours is faster).
"""

import argparse
import json
import math
import statistics
import subprocess

import torch
import torch.nn.functional as F

GEMM = [
    (1024, 1024, 1024), (2048, 2048, 2048), (4096, 4096, 4096), (8192, 8192, 8192),
    (8192, 28672, 4096), (4096, 16384, 4096), (4096, 3072, 768), (4096, 4096, 14336),
]
SMALL = [(m, n, k) for m in (1, 4, 16) for n, k in ((4096, 4096), (14336, 4096), (128256, 2048))]
SWIGLU = [(4096, 14336, 4096), (1, 14336, 4096)]


def rows():
    for m, n, k in GEMM:
        yield m, n, k, "none", "Auto"
    for m, n, k in GEMM:
        yield m, n, k, "gelu-tanh", "Auto"
    for m, n, k in SMALL:
        yield m, n, k, "none", "Auto"
    for m, n, k in SWIGLU:
        yield m, n, k, "swiglu", "Auto"
    yield 4096, 4096, 4096, "none", "Tiled"
    yield 8192, 8192, 8192, "none", "Tiled"


def peers(activation, x, bias):
    """Name and function of each peer, of which the fastest counts."""
    if activation == "none":
        return {"F.linear": lambda w: F.linear(x, w)}
    if activation == "gelu-tanh":
        return {"addmm_activation": lambda w: torch._addmm_activation(bias, x, w.t(), use_gelu=True)}
    @torch.compile
    def swiglu(both):
        gate, up = both.chunk(2, -1)
        return F.silu(gate) * up
    return {"F.linear + compiled SwiGLU": lambda w: swiglu(F.linear(x, w))}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("bench")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtype", default="bf16", choices=["bf16", "f16"])
    options = parser.parse_args()
    dtype = {"bf16": torch.bfloat16, "f16": torch.float16}[options.dtype]
    ours = subprocess.Popen([options.bench], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def ask(line):
        ours.stdin.write(line + "\n")
        ours.stdin.flush()
        return ours.stdout.readline().strip()

    torch.manual_seed(0)
    for m, n, k, activation, mode in rows():
        columns = 2 * n if activation == "swiglu" else n
        weight_bytes = columns * k * 2
        copies = min(16, max(1, math.ceil(256e6 / weight_bytes))) if m <= 16 else 1
        flops = 2 * m * columns * k
        launches = max(copies, min(50, int(2e12 / flops) + 1))
        answer = ask(f"case {m} {n} {k} {options.dtype} {activation} {mode} {launches} {copies}")
        if answer != "ready":
            print(json.dumps(dict(M=m, N=n, K=k, act=activation, mode=mode, error=answer)), flush=True)
            continue
        x = torch.randn(m, k, device="cuda", dtype=dtype)
        ws = [torch.randn(columns, k, device="cuda", dtype=dtype) / math.sqrt(k) for _ in range(copies)]
        bias = torch.randn(columns, device="cuda", dtype=dtype)
        graphs = {}
        for name, f in peers(activation, x, bias).items():
            for w in ws[:2]:
                f(w)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for i in range(launches):
                    f(ws[i % copies])
            graphs[name] = graph
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

        def sample(graph):
            begin.record()
            graph.replay()
            end.record()
            torch.cuda.synchronize()
            return begin.elapsed_time(end) * 1e3 / launches

        mine, theirs = [], {name: [] for name in graphs}
        ask("sample")
        for name, graph in graphs.items():
            sample(graph)
        for _ in range(options.rounds):
            mine.append(float(ask("sample")))
            for name, graph in graphs.items():
                theirs[name].append(sample(graph))
        mine = statistics.median(mine)
        theirs = {name: statistics.median(samples) for name, samples in theirs.items()}
        peer = min(theirs, key=theirs.get)
        print(json.dumps(dict(
            M=m, N=n, K=k, act=activation, mode=mode, dtype=options.dtype, us=round(mine, 2),
            peer=peer, peer_us=round(theirs[peer], 2), ratio=round(theirs[peer] / mine, 3),
            TFLOPs=round(flops / mine / 1e6, 1), TBps=round((weight_bytes + 2 * m * (k + n)) / mine / 1e6, 3),
        )), flush=True)
        del ws, x, graphs
    ours.stdin.close()
    ours.wait()


if __name__ == "__main__":
    main()
