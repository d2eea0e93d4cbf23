"""Small models with a state of every kind: two layers over 16 features, written in the IR without caches.

A kind is what a layer does with ``h`` [T, 16] to make ``y`` [T, 16], and the weights that it has for that.
"""

from irloom.ir.parse import parse
from irloom.passes.sample import random_weights

from .written import Written

HEAD = "# irloom 1\nT: dim[1, 8192]; S: dim[1, 256]\n"
LAYER = """
def {name}(x: f32[T, 16], {given}seqs: seqs[T, S], ln: f32[16] = weight("l.{{i}}.ln.weight"), {weights}):
    h = rms_norm(x, ln)
{body}
    out = add(x, y)
    return out{returned}
"""
MAIN = """
def main(
    ids: i32[T], seqs: seqs[T, S], embed: f32[40, 16] = weight("embed"), ln: f32[16] = weight("ln.weight"),
):
    x = embedding(ids, embed)
{layers}
    h = rms_norm({last}, ln)
    logits = linear(h, embed)
    return logits
"""
TWICE = "    for i in range(2):\n        x = layer[i](x, seqs)"
LENT = """\
    x1, k, v = layer[0](x, seqs)
    x2, k1, v1 = layer[1](x1, seqs)
    for i in range(2, 4):
        x2 = reader[i](x2, k1, v1, seqs)"""

QKV = """
qkv: 32 16; o: 16 16
u = linear(h, qkv)
q0, k0, v0 = split(u, dim=1, sizes=(16, 8, 8))
q1 = reshape(q0, dims=(T, 2, 8))
k1 = reshape(k0, dims=(T, 1, 8))
v = reshape(v0, dims=(T, 1, 8))
at = positions(seqs)
q = rope(q1, at)
k = rope(k1, at)
"""
OUT = """
flat = reshape(a, dims=(T, 16))
y = linear(flat, o)
"""
LATENT = """
q: 20 16; kv_a: 16 16; kv_b: 28 12; o: 16 16
at = positions(seqs)
u = linear(h, q)
heads = reshape(u, dims=(T, 2, 10))
q0, q1 = split(heads, dim=-1, sizes=(6, 4))
q2 = rope(q1, at)
q3 = concat(q0, q2, dim=-1)
low = linear(h, kv_a)
c0, k0 = split(low, dim=1, sizes=(12, 4))
c = rms_norm(c0)
k1 = reshape(k0, dims=(T, 1, 4))
k2 = rope(k1, at)
k3 = expand(k2, dims=(T, 2, 4))
made = linear(c, kv_b)
both = reshape(made, dims=(T, 2, 14))
k4, v = split(both, dim=-1, sizes=(6, 8))
k = concat(k4, k3, dim=-1)
a = attention(q3, k, v, seqs, scale=0.3)
"""
CONV = """
taps: 16 4
c = causal_conv(w, taps, seqs)
z = silu(c)
"""
DELTA = """
up: {rows} 16; o: 16 16
u = linear(h, up)
w, q0, v0, keep, rate = split(u, dim=1, sizes=(16, 16, 16, {decays}, 2))
{conv}
q = reshape(q0, dims=(T, 2, 8))
k1 = reshape(z, dims=(T, 2, 8))
k = mul(k1, 0.3)
v = reshape(v0, dims=(T, 2, 8))
sharp = sigmoid(keep)
fall = neg(sharp)
decay = reshape(fall, dims=(T, 2, {each}))
beta = sigmoid(rate)
"""
KINDS = {
    "full attention": [QKV, "a = attention(q, k, v, seqs, scale=0.35)", OUT],
    "sliding window": [QKV, "a = attention(q, k, v, seqs, scale=0.35, window=10)", OUT],
    "chunks": [QKV, "a = attention(q, k, v, seqs, scale=0.35, chunk=8)", OUT],
    "sinks per head": [QKV, "sinks: 2\na = attention(q, k, v, seqs, sinks, scale=0.35, window=10)", OUT],
    "slopes": [QKV, "slopes: 2\na = attention(q1, k1, v, seqs, None, slopes, scale=0.35)", OUT],
    "sparse attention": [
        QKV,
        """
        iq: 32 16; ik: 4 16; iw: 8 16
        i0 = linear(h, iq)
        i1 = reshape(i0, dims=(T, 8, 4))
        i2 = rope(i1, at)
        i3 = linear(h, ik)
        i4 = reshape(i3, dims=(T, 1, 4))
        i5 = rope(i4, at)
        i6 = linear(h, iw)
        i7 = sigmoid(i6)
        best = sparse_index(i2, i5, i7, seqs, topk=6)
        a = attention(q, k, v, seqs, None, None, best, scale=0.35)
        """,
        OUT,
    ],
    "latents, expanded": [LATENT, OUT],
    "latents, absorbed": [LATENT, OUT],
    "convolution": ["up: 16 16; o: 16 16\nw = linear(h, up)", CONV, "a = mul(z, h)", OUT],
    "Mamba": [
        "up: 40 16; o: 16 16; rate: 16 4",
        "u = linear(h, up)\nw, s, b, r = split(u, dim=1, sizes=(16, 16, 4, 4))",
        CONV,
        "dt = sigmoid(s)\nfast = exp(rate)\nfall = neg(fast)\na = selective_scan(z, dt, fall, b, r, seqs)",
        OUT,
    ],
    "Mamba-2": [
        "up: 36 16; o: 16 16; rate: 4",
        "u = linear(h, up)\nw, s, b, r = split(u, dim=1, sizes=(16, 4, 8, 8))",
        CONV,
        "v = reshape(z, dims=(T, 4, 4))\nb1 = reshape(b, dims=(T, 2, 4))\nr1 = reshape(r, dims=(T, 2, 4))",
        "dt = sigmoid(s)\nfast = exp(rate)\nfall = neg(fast)\na = ssd_scan(v, dt, fall, b1, r1, seqs)",
        OUT,
    ],
    "gated delta rule": [
        DELTA.format(rows=52, decays=2, each=1, conv=CONV),
        "a = gated_delta(q, k, v, decay, beta, seqs)",
        OUT,
    ],
    "Kimi delta attention": [
        DELTA.format(rows=66, decays=16, each=8, conv=CONV),
        "a = gated_delta(q, k, v, decay, beta, seqs)",
        OUT,
    ],
    "linear attention": [
        DELTA.format(rows=52, decays=2, each=1, conv=CONV),
        "a = gated_linear_attention(q, k, v, decay, seqs)",
        OUT,
    ],
    "RWKV": [
        """
        up: 32 16; o: 16 16; rate: 16; first: 16
        before = token_shift(h, seqs)
        both = add(h, before)
        u = linear(both, up)
        k, v = split(u, dim=1, sizes=(16, 16))
        fast = exp(rate)
        fall = neg(fast)
        a = wkv(k, v, fall, first, seqs)
        """,
        OUT,
    ],
    "xLSTM": [
        DELTA.format(rows=52, decays=2, each=1, conv=CONV),
        "a = mlstm(q, k, v, rate, fall, seqs)",
        OUT,
    ],
    "RG-LRU": [
        "up: 32 16; o: 16 16\nu = linear(h, up)\nw, s = split(u, dim=1, sizes=(16, 16))",
        CONV,
        "keep = sigmoid(s)\na = linear_scan(z, keep, seqs)",
        OUT,
    ],
    "token shift beside attention": [
        QKV,
        "before = token_shift(v, seqs)\nv1 = add(v, before)\na = attention(q, k, v1, seqs, scale=0.35)",
        OUT,
    ],
}  # fmt: skip
READER = """
wq: 16 16; o: 16 16
q0 = linear(h, wq)
q1 = reshape(q0, dims=(T, 2, 8))
at = positions(seqs)
q = rope(q1, at)
a = attention(q, k, v, seqs, scale=0.35)
"""
NAMES = [*KINDS, "keys and values of another layer"]


def model(kind: str) -> Written:
    """The model of a kind."""
    if kind in KINDS:
        text = HEAD + layer(KINDS[kind]) + MAIN.format(layers=TWICE, last="x")
    else:
        lender = layer(KINDS["full attention"], returned=", k, v")
        reader = layer([READER, OUT], "reader", "k: f32[T, 1, 8], v: f32[T, 1, 8], ")
        text = HEAD + lender + reader + MAIN.format(layers=LENT, last="x2")
    skip = ("absorb-mla",) if kind == "latents, expanded" else ()
    return Written(text, random_weights([parse(text)], 11), skip)


def layer(pieces: list[str], name: str = "layer", given: str = "", returned: str = "") -> str:
    """A layer as a function: lines of ``pieces`` with an equals sign are statements, others weights."""
    weights, body = list[str](), list[str]()
    for line in (line.strip() for piece in pieces for line in piece.strip().splitlines()):
        if "=" in line:
            body.append(f"    {line}")
        elif line:
            named = (part.strip().split(": ") for part in line.split(";"))
            weights += [f'{n}: f32[{", ".join(d.split())}] = weight("l.{{i}}.{n}")' for n, d in named]
    rows = "\n".join(body)
    return LAYER.format(name=name, given=given, weights=", ".join(weights), body=rows, returned=returned)
