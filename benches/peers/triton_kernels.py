"""Plain Triton versions of the five FlashKernel kernels: attention, linear with GELU, RoPE, paged cache (append, decode),
reductions. Peers of `ferroflash bench`; `serve.py` compares each with PyTorch before it is timed.
"""
import torch
import triton
import triton.language as tl


@triton.jit
def _attention(q, k, v, out, scale, heads, group, seq, CAUSAL: tl.constexpr, M: tl.constexpr, N: tl.constexpr, D: tl.constexpr):
    block, plane = tl.program_id(0), tl.program_id(1).to(tl.int64)
    plane_kv = (plane // heads) * (heads // group) + (plane % heads) // group
    rows, dims = block * M + tl.arange(0, M), tl.arange(0, D)
    at = plane * seq * D + rows[:, None] * D + dims[None, :]
    inside = rows[:, None] < seq
    query = tl.load(q + at, mask=inside, other=0.0)
    high = tl.full((M,), float("-inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)
    sum = tl.zeros((M, D), tl.float32)
    end = seq
    if CAUSAL:
        end = tl.minimum(seq, (block + 1) * M)
    for start in range(0, end, N):
        columns = start + tl.arange(0, N)
        there = columns[:, None] < seq
        at_kv = plane_kv * seq * D + columns[:, None] * D + dims[None, :]
        key = tl.load(k + at_kv, mask=there, other=0.0)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        seen = columns[None, :] < seq
        if CAUSAL:
            seen = seen & (rows[:, None] >= columns[None, :])
        scores = tl.where(seen, scores, float("-inf"))
        top = tl.maximum(high, tl.max(scores, 1))
        weights = tl.exp2(scores - top[:, None])
        factor = tl.exp2(high - top)
        total = total * factor + tl.sum(weights, 1)
        value = tl.load(v + at_kv, mask=there, other=0.0)
        sum = sum * factor[:, None] + tl.dot(weights.to(value.dtype), value, input_precision="ieee")
        high = top
    tl.store(out + at, (sum / total[:, None]).to(out.dtype.element_ty), mask=inside)


def attention(q, k, v, causal):
    """`[batch, heads, seq, dim]`, contiguous; grouped heads."""
    batch, heads, seq, dim = q.shape
    out = torch.empty_like(q)
    wide = q.dtype == torch.float32
    rows, columns = (32, 32) if wide or dim > 128 else (128, 64)
    _attention[(triton.cdiv(seq, rows), batch * heads)](
        q, k, v, out, dim ** -0.5 * 1.4426950408889634, heads, heads // k.shape[1], seq, causal, rows, columns, dim,
        num_warps=4 if wide or dim <= 64 else 8, num_stages=2 if dim > 128 else 3)
    return out


@triton.jit
def _linear_gelu(x, w, bias, out, m, n, k, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr):
    # Blocks of GROUP rows of tiles share columns of w in L2.
    program = tl.program_id(0)
    across, down = tl.cdiv(n, N), tl.cdiv(m, M)
    first = (program // (GROUP * across)) * GROUP
    size = tl.minimum(down - first, GROUP)
    i = first + (program % (GROUP * across)) % size
    j = (program % (GROUP * across)) // size
    rows, columns, depth = i * M + tl.arange(0, M), j * N + tl.arange(0, N), tl.arange(0, K)
    left = x + (rows % m)[:, None].to(tl.int64) * k + depth[None, :]
    right = w + (columns % n)[None, :].to(tl.int64) * k + depth[:, None]
    sum = tl.zeros((M, N), tl.float32)
    for start in range(0, k, K):
        there = depth < k - start
        sum = tl.dot(tl.load(left, mask=there[None, :], other=0.0), tl.load(right, mask=there[:, None], other=0.0), sum)
        left += K
        right += K
    z = sum + tl.load(bias + columns, mask=columns < n, other=0.0).to(tl.float32)[None, :]
    # 0.5 (1 + tanh u) = sigmoid(2 u)
    y = z * tl.sigmoid(1.5957691216057308 * (z + 0.044715 * z * z * z))
    tl.store(out + rows[:, None].to(tl.int64) * n + columns[None, :], y.to(out.dtype.element_ty),
             mask=(rows[:, None] < m) & (columns[None, :] < n))


def linear_gelu(x, w, bias):
    """GELU (tanh form) of `x wᵀ + bias`."""
    (m, k), n = x.shape, w.shape[0]
    out = torch.empty(m, n, device=x.device, dtype=x.dtype)
    tile = (128, 128, 64)
    _linear_gelu[(triton.cdiv(m, tile[0]) * triton.cdiv(n, tile[1]),)](
        x, w, bias, out, m, n, k, *tile, 8, num_warps=8, num_stages=3)
    return out


@triton.jit
def _rope(x, out, cos, sin, heads, HALF: tl.constexpr, H: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    pair, head = tl.arange(0, HALF), tl.arange(0, H)
    c = tl.load(cos + token * HALF + pair).to(tl.float32)[None, :]
    s = tl.load(sin + token * HALF + pair).to(tl.float32)[None, :]
    at = (token * heads + head[:, None]) * 2 * HALF + pair[None, :]
    inside = head[:, None] < heads
    a = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(x + at + HALF, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, (a * c - b * s).to(out.dtype.element_ty), mask=inside)
    tl.store(out + at + HALF, (b * c + a * s).to(out.dtype.element_ty), mask=inside)


def rope(q, k, cos, sin):
    """Both halves of each head of `[tokens, heads, dim]` by angles `[tokens, 1, dim / 2]`."""
    outs = torch.empty_like(q), torch.empty_like(k)
    for x, out in zip((q, k), outs):
        heads = x.shape[1]
        _rope[(x.shape[0],)](x, out, cos, sin, heads, x.shape[2] // 2, triton.next_power_of_2(heads), num_warps=4)
    return outs


@triton.jit
def _append(k, v, k_cache, v_cache, slots, width, W: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token)
    column = tl.arange(0, W)
    inside = column < width
    tl.store(k_cache + slot * width + column, tl.load(k + token * width + column, mask=inside), mask=inside)
    tl.store(v_cache + slot * width + column, tl.load(v + token * width + column, mask=inside), mask=inside)


def cache_append(k, v, k_cache, v_cache, slots):
    """Rows of `[tokens, width]` to their slots of `[pages · 16, width]`."""
    width = k.shape[1]
    _append[(k.shape[0],)](k, v, k_cache, v_cache, slots, width, triton.next_power_of_2(width), num_warps=4)
    return k_cache, v_cache


@triton.jit
def _decode_part(q, k_cache, v_cache, table, part, tops, sums, scale, heads_kv, length, pages, span,
                 GROUP: tl.constexpr, G: tl.constexpr, D: tl.constexpr, PAGE: tl.constexpr, N: tl.constexpr):
    batch, head, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    splits = tl.num_programs(2)
    row, dims = tl.arange(0, G), tl.arange(0, D)
    inside = row < GROUP
    plane = (batch * heads_kv + head) * GROUP + row
    query = tl.load(q + plane[:, None] * D + dims[None, :], mask=inside[:, None], other=0.0)
    high = tl.full((G,), float("-inf"), tl.float32)
    total = tl.zeros((G,), tl.float32)
    sum = tl.zeros((G, D), tl.float32)
    for start in range(split * span, tl.minimum(length, (split + 1) * span), N):
        token = start + tl.arange(0, N)
        there = token < length
        page = tl.load(table + batch * pages + token // PAGE, mask=there, other=0).to(tl.int64)
        at = ((page * PAGE + token % PAGE) * heads_kv + head)[:, None] * D + dims[None, :]
        key = tl.load(k_cache + at, mask=there[:, None], other=0.0)
        scores = tl.where(there[None, :], tl.dot(query, tl.trans(key)) * scale, float("-inf"))
        top = tl.maximum(high, tl.max(scores, 1))
        weights, factor = tl.exp2(scores - top[:, None]), tl.exp2(high - top)
        total = total * factor + tl.sum(weights, 1)
        value = tl.load(v_cache + at, mask=there[:, None], other=0.0)
        sum = sum * factor[:, None] + tl.dot(weights.to(value.dtype), value)
        high = top
    tl.store(part + (plane * splits + split)[:, None] * D + dims[None, :], sum, mask=inside[:, None])
    tl.store(tops + plane * splits + split, high, mask=inside)
    tl.store(sums + plane * splits + split, total, mask=inside)


@triton.jit
def _decode_merge(part, tops, sums, out, splits, S: tl.constexpr, D: tl.constexpr):
    plane = tl.program_id(0).to(tl.int64)
    split, dims = tl.arange(0, S), tl.arange(0, D)
    there = split < splits
    top = tl.load(tops + plane * splits + split, mask=there, other=float("-inf"))
    factor = tl.exp2(top - tl.max(top, 0))
    total = tl.sum(tl.load(sums + plane * splits + split, mask=there, other=0.0) * factor, 0)
    rows = tl.load(part + (plane * splits + split)[:, None] * D + dims[None, :], mask=there[:, None], other=0.0)
    tl.store(out + plane * D + dims, (tl.sum(rows * factor[:, None], 0) / total).to(out.dtype.element_ty))


def decode(q, k_cache, v_cache, table, length):
    """One token `[batch, heads, dim]` over `length` tokens in pages `[pages, page, heads_kv, dim]`."""
    (batch, heads, dim), (_, page, heads_kv, _) = q.shape, k_cache.shape
    block = 64
    splits = max(1, min(triton.cdiv(length, 4 * block), triton.cdiv(528, batch * heads_kv)))
    span = triton.cdiv(triton.cdiv(length, splits), block) * block
    splits = triton.cdiv(length, span)
    part = torch.empty(batch * heads, splits, dim, device=q.device, dtype=torch.float32)
    tops, sums = (torch.empty(batch * heads, splits, device=q.device, dtype=torch.float32) for _ in range(2))
    out = torch.empty_like(q)
    group = heads // heads_kv
    _decode_part[(batch, heads_kv, splits)](
        q, k_cache, v_cache, table, part, tops, sums, dim ** -0.5 * 1.4426950408889634, heads_kv, length, table.shape[1],
        span, group, max(16, triton.next_power_of_2(group)), dim, page, block, num_warps=4, num_stages=3)
    _decode_merge[(batch * heads,)](part, tops, sums, out, splits, triton.next_power_of_2(splits), dim, num_warps=4)
    return out


@triton.jit
def _combine(a, b, KIND: tl.constexpr):
    if KIND == "max":
        return tl.maximum(a, b)
    elif KIND == "min":
        return tl.minimum(a, b)
    else:
        return a + b


@triton.jit
def _reduce(x, out, columns, span, factor, KIND: tl.constexpr, SQUARE: tl.constexpr, N: tl.constexpr):
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    none = float("-inf") if KIND == "max" else (float("inf") if KIND == "min" else 0.0)
    kept = tl.full((N,), none, tl.float32)
    for start in range(0, span, N):
        column = split * span + start + tl.arange(0, N)
        value = tl.load(x + row * columns + column, mask=column < columns, other=none).to(tl.float32)
        if SQUARE:
            value = value * value
        kept = _combine(kept, value, KIND)
    if KIND == "max":
        result = tl.max(kept, 0)
    elif KIND == "min":
        result = tl.min(kept, 0)
    else:
        result = tl.sum(kept, 0) * factor
    tl.store(out + row * tl.num_programs(1) + split, result.to(out.dtype.element_ty))


def reduce(x, kind):
    """Sum, mean, maximum, minimum or sum of squares of each row, in f32 until the end."""
    rows, columns = x.shape
    fold = {"Max": "max", "Min": "min"}.get(kind, "sum")
    splits = 1 if rows >= 1024 else max(1, min(2048 // rows, triton.cdiv(columns, 8192)))
    block = min(4096, triton.next_power_of_2(columns))
    span = triton.cdiv(triton.cdiv(columns, splits), block) * block
    splits = triton.cdiv(columns, span)
    factor = 1.0 / columns if kind == "Mean" else 1.0
    dtype = torch.float32 if kind == "SumOfSquares" else x.dtype
    out = torch.empty(rows, splits, device=x.device, dtype=dtype if splits == 1 else torch.float32)
    _reduce[(rows, splits)](x, out, columns, span, factor if splits == 1 else 1.0, fold, kind == "SumOfSquares", block,
                            num_warps=8)
    if splits == 1:
        return out[:, 0]
    last = torch.empty(rows, 1, device=x.device, dtype=dtype)
    block = triton.next_power_of_2(splits)
    _reduce[(rows, 1)](out, last, splits, block, factor, fold, False, block, num_warps=4)
    return last[:, 0]
