"""Put one ``irloom.attention`` where a captured graph spells attention out, or computes its mask itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from irloom.frontends.hf.spelled.operands import Heads, heads
from irloom.frontends.hf.spelled.probe import Probe, literals
from irloom.frontends.hf.spelled.scores import Scores, understand
from irloom.frontends.hf.spelled.seen import Lengths, Seen, classify
from irloom.frontends.hf.spelled.spine import SDPA, Spine, live_nodes, same_weights, spines
from irloom.ir.errors import TraceError

aten = torch.ops.aten


def raise_attention(probe: Probe) -> int:
    """Rewrite every attention of the graph; how many there were.

    Raises ``TraceError``, with module and line, at an attention over tokens that is none of ours.
    """
    found = list(spines(probe))
    for spine in found:
        with probe.at(spine.softmax):
            _spelled(probe, spine)
    live = live_nodes(probe)
    direct = [n for n in probe.graph.nodes if n in live and str(n.target) == SDPA and _over_tokens(n)]
    for node in direct:
        with probe.at(node):
            _sdpa(probe, node)
    masked = [n for n in probe.graph.nodes if n in live and _computes_mask(n)]
    for node in masked:
        with probe.at(node):
            _masked(probe, node)
    probe.survey()
    return len(found) + len(direct) + len(masked)


def _spelled(probe: Probe, spine: Spine) -> None:
    """Rewrite a softmax between two products."""
    first, second = spine.scores, spine.values
    query, q_dims = spine.query, first.dims(spine.query)
    key, k_dims = first.other(query)
    value, v_dims = second.other(spine.weights)
    p_dims = second.dims(spine.weights)
    row, column = first.out_dims[-2:]
    (feature,) = {*q_dims} & {*k_dims} - {*first.out_dims}
    (width,) = {*v_dims} - {*p_dims}
    p_batch = {d: int(n) for d, n in zip(p_dims[:-2], spine.weights.meta["val"].shape[:-2], strict=True)}
    same_weights(spine, probe)
    k = heads(probe, key, k_dims, spine.batch, column, feature)
    v = heads(probe, value, v_dims, p_batch, p_dims[-1], width)
    hints = [*literals(probe.needed(spine.softmax, {first.node}))]
    scores = understand(spine.chain(probe), k.cached, hints)
    with probe.graph.inserting_before(second.node):
        build = _Build(probe.graph, second.node)
        order = [q_dims.index(d) for d in (*[d for d in spine.batch if d in q_dims], row, feature)]
        q = build(aten.permute.default, query, order)
        q = build(aten.reshape.default, q, [1, _count(spine.batch), -1, query.meta["val"].shape[-1]])
        out = build.attention(q, k, v, scores)
        out = build(aten.transpose.int, out, 1, 2)
        sizes = [*p_batch.values(), -1, _last(value, v_dims, width)]
        out = build(aten.reshape.default, out, sizes)
        made = [*p_batch, p_dims[-2], width]
        if list(second.out_dims) != made:
            out = build(aten.permute.default, out, [made.index(d) for d in second.out_dims])
    _replace(second.node, out)


def _count(batch: dict[str, int]) -> int:
    return int(torch.Size(batch.values()).numel())


def _last(node: Node, dims: str, letter: str) -> int:
    return int(node.meta["val"].shape[dims.index(letter)])


def _over_tokens(node: Node) -> bool:
    """Whether the keys of torch's own attention are tokens; others are a fixed number for each token."""
    key = node.args[1]
    return isinstance(key, Node) and isinstance(key.meta["val"].shape[-2], torch.SymInt)


def _sdpa(probe: Probe, node: Node) -> None:
    """Rewrite torch's own attention."""
    q, k, v, mask, _, causal, *_ = (*node.args, *[None] * 6)
    mask = node.kwargs.get("attn_mask", mask)
    causal = node.kwargs.get("is_causal", causal)
    scale: Any = node.kwargs.get("scale")
    assert isinstance(q, Node) and isinstance(k, Node) and isinstance(v, Node)
    shape = q.meta["val"].shape
    dims = "bhsd" if len(shape) == 4 else "hsd"
    batch = {d: int(n) for d, n in zip(dims[:-2], k.meta["val"].shape[:-2], strict=True)}
    keys, values = (heads(probe, x, dims, batch, "s", "d") for x in (k, v))
    seen = Seen() if causal else _mask_of(probe, mask, keys.cached)
    scores = Scores(float(scale) if scale is not None else int(shape[-1]) ** -0.5, None, seen)
    with probe.graph.inserting_before(node):
        build = _Build(probe.graph, node)
        query = q if len(shape) == 4 else build(aten.unsqueeze.default, q, 0)
        out = build(aten.transpose.int, build.attention(query, keys, values, scores), 1, 2)
        if len(shape) == 3:
            out = build(aten.squeeze.dim, out, 0)
    _replace(node, out)


def _computes_mask(node: Node) -> bool:
    """Whether an attention of the library's interface takes a mask that is not simply one of its kinds."""
    if str(node.target) != "irloom.attention.default":
        return False
    mask = node.args[3]
    return isinstance(mask, Node) and str(mask.target) != "irloom.attention_mask.default"


def _masked(probe: Probe, node: Node) -> None:
    """Replace a computed mask by what it means."""
    k, mask = node.args[1], node.args[3]
    assert isinstance(k, Node)
    seen = _mask_of(probe, mask, k.meta["val"].shape[-2] != node.args[0].meta["val"].shape[-2])  # type: ignore[union-attr]
    args = list(node.args)
    args[3], args[7], args[8] = None, seen.window or 0, True
    node.args = (*args[:10], seen.chunk or 0, _floats(seen), *args[12:])


def _mask_of(probe: Probe, mask: Any, cached: bool) -> Seen:
    """What a mask that the model computed means."""
    if not isinstance(mask, Node):
        raise TraceError("attention sees later tokens", hint="only decoders, which look back, can be traced")

    def look(at: Lengths) -> Tensor:
        bias = probe.value(mask, at)
        if bias.dtype == torch.bool:
            bias = torch.zeros(bias.shape).masked_fill(~bias, float("-inf"))
        keys = at.tokens + at.past if cached else at.tokens
        bias = bias.expand(*bias.shape[:-2], at.tokens, keys).float()
        return bias.reshape(-1, at.tokens, keys)

    return classify(look, cached, [*literals(probe.needed(mask))])


class _Build:
    """Adds nodes in place of ``old``, where the model has it."""

    def __init__(self, graph: Graph, old: Node) -> None:
        self.graph, self.old = graph, old

    def __call__(self, op: Any, *args: Any) -> Node:
        node = self.graph.call_function(op, args)
        node.meta = {k: v for k, v in self.old.meta.items() if k in ("nn_module_stack", "stack_trace")}
        return node

    def heads(self, x: Heads) -> Node:
        """[1, heads, S, features] of keys or values; what a cache gave back stays whole."""
        if x.cached or x.turn is None:
            return x.base
        node = self(aten.permute.default, x.base, list(x.turn))
        sizes = x.base.meta["val"].shape
        return self(aten.reshape.default, node, [1, x.count, -1, int(sizes[x.turn[-1]])])

    def attention(self, q: Node, k: Heads, v: Heads, scores: Scores) -> Node:
        """``irloom.attention`` of [1, H, T, D] to [1, T, H, E]."""
        if v.scale != 1:
            raise TraceError("attention scales its values after their cache")
        layer = int(k.base.args[0].args[2]) if k.cached else -1  # type: ignore[union-attr, arg-type]
        seen = scores.seen
        return self(
            torch.ops.irloom.attention.default, q, self.heads(k), self.heads(v), None, None,
            scores.scale * k.scale, scores.softcap or 0.0, seen.window or 0, True, layer, seen.chunk or 0,
            _floats(seen),
        )  # fmt: skip


def _floats(seen: Seen) -> list[float] | None:
    return None if seen.slopes is None else list(seen.slopes)


def _replace(old: Node, new: Node) -> None:
    """What only ``old`` needed stays in the graph, dead; the importer skips it."""
    new.meta.setdefault("val", old.meta.get("val"))
    old.replace_all_uses_with(new)
