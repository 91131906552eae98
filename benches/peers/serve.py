"""PyTorch and Triton as peers of `ferroflash bench`: reads a JSON line, answers a JSON line.

{"prepare": CASE, "launches": N, "copies": C, "graphs": true} sets up CUDA graphs of N runs over C sets of buffers and
answers {"ready": [NAMES], "failed": {NAME: WHY}}; without graphs the N runs are launched one by one between two events.
{"turn": NAME} answers {"us": MICROSECONDS OF ONE RUN}; what fails answers {"error": WHY}.

Arguments: `compile` or `eager`, and the source of `triton_kernels.py`.
"""
import importlib.util
import json
import math
import os
import sys
import tempfile

out = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)  # whatever else prints


def say(**answer):
    out.write(json.dumps(answer) + "\n")
    out.flush()


try:
    import torch
    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel
    assert torch.cuda.is_available(), "PyTorch sees no GPU"
except Exception as problem:
    say(error=f"{type(problem).__name__}: {problem}"[:200])
    sys.exit(0)

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def randn(*shape, dtype=torch.bfloat16):
    return torch.randn(*shape, device="cuda", dtype=dtype)


PAGE = 16
# Ops of which the first peer's result is kept, for Triton's to be compared with.
CHECKED = ("attention", "decode-paged", "cache-append", "linear", "rope", "reduce")
COMPILE = sys.argv[1:2] != ["eager"]


def triton_kernels(source):
    """The module of this source. Triton reads the text of its kernels from a file."""
    try:
        import triton  # noqa: F401
        folder = tempfile.TemporaryDirectory()
        path = os.path.join(folder.name, "triton_kernels.py")
        with open(path, "w", encoding="utf-8") as file:
            file.write(source)
        spec = importlib.util.spec_from_file_location("triton_kernels", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.folder = folder  # as long as the module
        return module, None
    except Exception as problem:
        return None, f"{type(problem).__name__}: {problem}"[:120]


KERNELS, NO_TRITON = triton_kernels(sys.argv[2]) if len(sys.argv) > 2 else (None, "no source of its kernels")


def triton(run):
    """A peer in Triton: a function of the module of kernels and a set of buffers; None where Triton is missing."""
    return {"Triton": KERNELS and (lambda *buffers: run(KERNELS, *buffers))}


def compiled(f):
    """A peer of its own beside eager, unless it was left out."""
    return torch.compile(f, dynamic=False) if COMPILE else None


def attention(c, dt):
    q = randn(c["batch"], c["heads"], c["seq"], c["dim"], dtype=dt)
    k = randn(c["batch"], c["heads_kv"], c["seq"], c["dim"], dtype=dt)
    return q, k, torch.randn_like(k)


def sdpa(backend, **options):
    def run(q, k, v):
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, **options)
    return run


def peers(c):
    """make: buffers of one set; runs: name to function of them."""
    op, dt = c["op"], DTYPES[c.get("dtype", "bf16")]
    both = lambda f: {"eager": f, "compile": compiled(f)}
    if op in ("attention", "decode"):
        if op == "attention":
            make = lambda: attention(c, dt)
            options = dict(is_causal=c["causal"], enable_gqa=c["heads"] != c["heads_kv"])
            ours = triton(lambda t, q, k, v: t.attention(q, k, v, c["causal"]))
        else:
            ours = {}
            kv = (c["batch"], c["heads_kv"], c["length"], c["dim"])
            make = lambda: (randn(c["batch"], c["heads"], 1, c["dim"], dtype=dt), randn(*kv, dtype=dt), randn(*kv, dtype=dt))
            options = dict(enable_gqa=True)
        if dt == torch.float32:
            return make, {"SDPA efficient": sdpa(SDPBackend.EFFICIENT_ATTENTION, **options), **ours}
        return make, {"SDPA flash": sdpa(SDPBackend.FLASH_ATTENTION, **options),
                      "SDPA cuDNN": sdpa(SDPBackend.CUDNN_ATTENTION, **options), **ours}
    if op == "attention-packed":
        # The function behind SDPA's flash backend takes packed sequences and windows; SDPA itself takes neither.
        starts = [sum(c["lengths"][:n]) for n in range(len(c["lengths"]) + 1)]
        bounds = torch.tensor(starts, device="cuda", dtype=torch.int32)
        longest = max(c["lengths"])
        right = 0 if c["causal"] else c["window"]
        window = dict(window_size_left=c["window"], window_size_right=right) if c["window"] >= 0 else {}
        flash = lambda q, k, v: torch.ops.aten._flash_attention_forward(
            q, k, v, bounds, bounds, longest, longest, 0.0, c["causal"] and not window, False, **window)[0]
        return (lambda: tuple(randn(starts[-1], c["heads"], c["dim"], dtype=dt) for _ in range(3))), {"SDPA flash": flash}
    if op == "decode-paged":
        # Pages in a shuffled order for Triton; the same tokens in one piece for SDPA, which knows no pages.
        pages = c["length"] // PAGE

        def make():
            q = randn(c["batch"], c["heads"], 1, c["dim"], dtype=dt)
            caches = [randn(c["batch"] * pages, PAGE, c["heads_kv"], c["dim"], dtype=dt) for _ in range(2)]
            table = torch.randperm(c["batch"] * pages, device="cuda", dtype=torch.int32).view(c["batch"], pages)
            flat = [cache[table.long()].flatten(1, 2).transpose(1, 2).contiguous() for cache in caches]
            return (q, *flat, *caches, table)
        whole = lambda backend: (lambda q, k, v, *_: sdpa(backend, enable_gqa=True)(q, k, v))
        return make, {"SDPA flash": whole(SDPBackend.FLASH_ATTENTION), "SDPA cuDNN": whole(SDPBackend.CUDNN_ATTENTION),
                      **triton(lambda t, q, k, v, pk, pv, table: t.decode(q[:, :, 0], pk, pv, table, c["length"])[:, :, None])}
    if op == "cache-append":
        tokens, width = c["tokens"], c["heads_kv"] * c["dim"]
        make = lambda: (*(randn(tokens, width, dtype=dt) for _ in range(4)), torch.randperm(tokens, device="cuda"))

        def indexed(k, v, k_cache, v_cache, slots):
            k_cache[slots] = k
            v_cache[slots] = v
            return k_cache, v_cache
        return make, {"eager": indexed, **triton(lambda t, *buffers: t.cache_append(*buffers))}
    if op == "attention-backward":
        options = dict(is_causal=c["causal"], enable_gqa=c["heads"] != c["heads_kv"])

        def differentiable(backend):
            def make():
                q, k, v = (x.requires_grad_() for x in attention(c, dt))
                with sdpa_kernel(backend):
                    y = F.scaled_dot_product_attention(q, k, v, **options)
                return y, q, k, v, torch.randn_like(y)
            return make
        gradients = lambda y, q, k, v, g: torch.autograd.grad(y, (q, k, v), g, retain_graph=True)
        flash, cudnn = differentiable(SDPBackend.FLASH_ATTENTION), differentiable(SDPBackend.CUDNN_ATTENTION)
        return (lambda: (flash(), cudnn())), {
            "SDPA flash": lambda flash, cudnn: gradients(*flash), "SDPA cuDNN": lambda flash, cudnn: gradients(*cudnn)}
    if op == "linear":
        m, n, k = c["m"], c["n"], c["k"]
        columns = 2 * n if c["around"] == "swiglu" else n
        x, bias = randn(m, k, dtype=dt), randn(columns, dtype=dt)
        make = lambda: (x, randn(columns, k, dtype=dt) / math.sqrt(k), bias)
        if c["around"] == "none":
            return make, {"F.linear": lambda x, w, b: F.linear(x, w)}
        if c["around"] == "gelu-tanh":
            return make, {"addmm_activation": lambda x, w, b: torch._addmm_activation(b, x, w.t(), use_gelu=True),
                          **triton(lambda t, x, w, b: t.linear_gelu(x, w, b))}
        pair = lambda y: F.silu(y.chunk(2, -1)[0]) * y.chunk(2, -1)[1]
        fast = compiled(pair)
        return make, {"F.linear + eager SwiGLU": lambda x, w, b: pair(F.linear(x, w)),
                      "F.linear + compiled SwiGLU": fast and (lambda x, w, b: fast(F.linear(x, w)))}
    if op in ("rope", "rope-append"):
        t, d = c["tokens"], c["dim"]
        make = lambda: (randn(t, c["heads"], d), randn(t, c["heads_kv"], d), randn(t, 1, d // 2), randn(t, 1, d // 2))

        def rotate(x, cos, sin):
            a, b = x.chunk(2, -1)
            return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
        pair = lambda q, k, cos, sin: (rotate(q, cos, sin), rotate(k, cos, sin))
        return make, {**both(pair), **triton(lambda t, *buffers: t.rope(*buffers))} if op == "rope" else {}
    if op == "copy":
        empty = lambda: torch.zeros(c["bytes"], device="cuda", dtype=torch.uint8)
        return (lambda: (empty(), empty())), {"copy_ of as many bytes": lambda a, b: a.copy_(b)}
    if op == "adamw":
        p = torch.nn.Parameter(randn(c["elements"], dtype=torch.float32))
        p.grad = torch.randn_like(p)
        step = torch.optim.AdamW([p], fused=True, capturable=True)
        return (lambda: ()), {"fused AdamW, f32 without a master": lambda: step.step()}
    if op == "llama-prompt":
        # A whole model of random weights: its prompt up to the logits of the last token, cache kept, as a server would.
        from transformers import LlamaConfig, LlamaForCausalLM
        config = LlamaConfig(**c["config"], attn_implementation="sdpa")
        torch.set_default_dtype(dt)
        with torch.device("cuda"):
            model = LlamaForCausalLM(config).eval()
        torch.set_default_dtype(torch.float32)

        def first_logits(ids):
            with torch.no_grad():
                return model(ids, use_cache=True, logits_to_keep=1).logits
        return (lambda: (torch.randint(0, 997, (1, c["tokens"]), device="cuda"),)), {"transformers, SDPA": first_logits}
    rows, columns = c.get("rows"), c.get("columns")
    x = lambda: randn(rows, columns, dtype=dt)
    if op == "rms_norm":
        return (lambda: (x(), randn(columns))), both(lambda x, w: F.rms_norm(x, (columns,), w, 1e-5))
    if op == "layer_norm":
        return (lambda: (x(), randn(columns), randn(columns))), both(lambda x, w, b: F.layer_norm(x, (columns,), w, b))
    if op == "rms_norm_residual":
        def fused(x, r, w):
            s = x + r
            return F.rms_norm(s, (columns,), w, 1e-5), s
        return (lambda: (x(), x(), randn(columns))), both(fused)
    if op == "rms_norm_backward":
        def make():
            a, w = x(), randn(columns)
            r = torch.rsqrt(a.float().square().mean(-1, keepdim=True) + 1e-5)
            return torch.randn_like(a), a, r, w
        return make, {"eager": lambda g, a, r, w: torch.ops.aten._fused_rms_norm_backward(
            g, a, [columns], r, w, [True, True])}
    if op == "layer_norm_backward":
        def make():
            a, w = x(), randn(columns)
            _, mean, r = torch.ops.aten.native_layer_norm(a, [columns], w, w, 1e-5)
            return torch.randn_like(a), a, mean, r, w
        return make, {"eager": lambda g, a, mean, r, w: torch.ops.aten.native_layer_norm_backward(
            g, a, [columns], mean, r, w, w, [True, True, True])}
    if op == "softmax":
        return (lambda: (x(),)), both(lambda x: torch.softmax(x, -1))
    if op == "softmax_backward":
        return (lambda: (torch.softmax(x(), -1), x())), {
            "eager": lambda y, g: torch._softmax_backward_data(g, y, -1, dt)}
    if op in ("cross_entropy", "cross_entropy_gradient"):
        make = lambda: (x(), torch.randint(columns, (rows,), device="cuda"))
        loss = lambda x, t: F.cross_entropy(x, t, reduction="none")
        if op == "cross_entropy":
            return make, both(loss)
        gradient = lambda x, t: torch.softmax(x.float(), -1).scatter_add_(
            1, t[:, None], torch.full((rows, 1), -1.0, device=x.device)).to(x.dtype)
        return make, both(lambda x, t: (loss(x, t), gradient(x, t)))
    if op == "gelu_tanh":
        return (lambda: (x(),)), both(lambda x: F.gelu(x, approximate="tanh"))
    if op == "swiglu":
        return (lambda: (randn(rows, 2 * columns),)), both(lambda x: F.silu(x.chunk(2, -1)[0]) * x.chunk(2, -1)[1])
    if op == "add":
        return (lambda: (x(), x())), {"eager": torch.add}
    if op == "cast":
        return (lambda: (randn(rows, columns, dtype=torch.float32),)), {"eager": lambda x: x.to(torch.bfloat16)}
    if op == "transpose":
        return (lambda: (x(),)), {"eager": lambda x: x.t().contiguous()}
    if op == "embedding":
        make = lambda: (randn(rows, columns), torch.randint(rows, (c["tokens"],), device="cuda"))
        return make, {"eager": lambda t, i: F.embedding(i, t)}
    if op == "embedding_backward":
        make = lambda: (randn(c["tokens"], columns), torch.randint(rows, (c["tokens"],), device="cuda"))
        return make, {"eager": lambda g, i: torch.ops.aten.embedding_dense_backward(g, i, rows, -1, False)}
    if op == "argmax":
        return (lambda: (x(),)), {"eager": lambda x: x.argmax(-1)}
    if op == "reduce":
        kind = {"Sum": lambda x: x.sum(-1), "Mean": lambda x: x.mean(-1), "Max": lambda x: x.amax(-1),
                "Min": lambda x: x.amin(-1), "Argmax": lambda x: x.argmax(-1),
                "SumOfSquares": lambda x: torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32)}[c["kind"]]
        ours = triton(lambda t, x: t.reduce(x, c["kind"])) if c["kind"] != "Argmax" else {}
        return (lambda: (x(),)), {"eager": kind, **ours}
    return (lambda: ()), {}


prepared, launches = {}, 1
marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(6)]


def differs(case, result, wanted):
    """Why a result is not that of PyTorch, or None."""
    both = lambda x: x if isinstance(x, (tuple, list)) else (x,)
    for a, b in zip(both(result), both(wanted)):
        a, b = a.flatten(), b.flatten()
        if case.get("kind") == "SumOfSquares":
            b = b * b
        if a.shape != b.shape:
            return f"{tuple(a.shape)} is not {tuple(b.shape)}"
        wrong = (a.float() - b.float()).abs().max().item() / (b.float().abs().max().item() + 1e-6)
        if not wrong < (2e-3 if a.dtype == torch.float32 else 2e-2):
            return f"its result is off by {wrong:.2g} of the largest"
    return None


def prepare(question):
    global launches
    prepared.clear()
    torch.cuda.empty_cache()
    case, launches = question["prepare"], question["launches"]
    # Gradients run on the stream of their forward pass: everything is made on the stream that is captured.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    problems, first = {}, None
    with torch.cuda.stream(stream):
        make, runs = peers(case)
        sets = [make() for _ in range(question["copies"])] if runs else []
    for name, run in runs.items():
        if run is None:
            if name == "Triton":
                problems[name] = NO_TRITON
            continue
        capturing = False
        try:
            with torch.cuda.stream(stream):
                result = run(*sets[0])
                if name == "Triton" and first is not None:
                    if case["op"] == "cache-append":  # written by the first peer: must be written again
                        sets[0][2].zero_(), sets[0][3].zero_()
                        result = run(*sets[0])
                    wrong = differs(case, result, first)
                    if wrong:
                        problems[name] = wrong
                        continue
                if first is None and case["op"] in CHECKED:
                    first = tuple(x.clone() for x in result) if isinstance(result, tuple) else result
                del result
                for i in range(2):
                    run(*sets[i % len(sets)])
            torch.cuda.synchronize()

            def all_runs(run=run):
                for i in range(launches):
                    run(*sets[i % len(sets)])
            if question.get("graphs", True):
                capturing = True
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, stream=stream):
                    all_runs()
                capturing = False
                graph.replay()
                torch.cuda.synchronize()
                prepared[name] = (graph.replay, stream, sets)  # a graph does not keep them
            else:
                prepared[name] = (all_runs, stream, sets)
        except Exception as problem:
            problems[name] = f"{type(problem).__name__}: {problem}"[:160]
            if capturing:
                # PyTorch does not recover from this: whoever asks starts another one, which times without graphs.
                print(f"{name}: capture failed: {problem}", file=sys.stderr)
                say(error=f"capture: {name}: {problems[name]}")
                sys.exit(0)
    del first
    say(ready=list(prepared), failed=problems)


def turn(name):
    all_runs, stream, _ = prepared[name]
    # As ours: one after the other without a wait, and the first does not count.
    with torch.cuda.stream(stream):
        for begin, end in marks:
            begin.record()
            all_runs()
            end.record()
    marks[-1][1].synchronize()
    samples = sorted(begin.elapsed_time(end) * 1e3 / launches for begin, end in marks[1:])
    say(us=samples[len(samples) // 2])


torch.manual_seed(0)
say(version=f"PyTorch {torch.__version__}")
for line in sys.stdin:
    try:
        question = json.loads(line)
        if "prepare" in question:
            prepare(question)
        else:
            turn(question["turn"])
    except Exception as problem:
        say(error=f"{type(problem).__name__}: {problem}"[:200])
