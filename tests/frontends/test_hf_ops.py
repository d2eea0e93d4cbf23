"""Ops of the library, one body at a time: what is imported computes what the library computes."""

import pytest
import torch
from torch import nn

from irloom.frontends.hf import trace_hf
from irloom.frontends.hf.live import LiveCheckpoint
from irloom.ir.errors import TraceError
from irloom.ir.interp import Interpreter
from irloom.ir.seqs import Seqs
from irloom.passes import run_pipeline


class Model(nn.Module):
    """Embeds tokens, applies ``body`` to [1, T, 16], and gives logits."""

    def __init__(self, body):
        super().__init__()
        self.embed, self.head = nn.Embedding(32, 16), nn.Linear(16, 32, bias=False)
        self.body = body

    def forward(self, input_ids, position_ids):
        return self.head(self.body(self.embed(input_ids)))


def imported(body):
    """A model with this body, after its trace was found to compute what it computes."""
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        model = Model(body).eval()
    module = trace_hf(model)
    ids = torch.arange(2, 14)
    with torch.inference_mode():
        (ours,) = Interpreter(module, LiveCheckpoint(model))(ids.int(), Seqs.of([5, 7]))
        expected = model(ids[None], None)[0]
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    return module


def halves(x):
    y = x + 1
    half = y[..., :8]
    half.add_(1)
    return y


def doubled(x):
    y = x + 1
    y.mul_(2)
    return y


def assigned(x):
    y = torch.empty_like(x)
    y[..., :4], y[..., 4:] = x[..., 12:], x[..., :12]
    return y


def interleaved(x):
    y = x.clone()
    y[..., 1:10:3] = -x[..., :3]
    return y


def one_entry(x):
    y = x.clone()
    y[..., -1] = 0.5
    return y


def through_a_view(x):
    y = x.clone()
    heads = y.view(1, -1, 4, 4).transpose(2, 3)
    heads[..., 0].mul_(3.0)
    return y * y.sum(-1, keepdim=True)


def an_old_view_reads_anew(x):
    y = x.clone()
    half = y[..., :8]
    y.mul_(2)
    return torch.cat([half, y[..., 8:]], -1)


def nothing_at_all(x):
    y = x.clone()
    y[..., 0:0] = x[..., 0:0]
    return y


def from_past_the_front(x):
    y = x.clone()
    y[..., -40:3] = -x[..., :3]
    return y


def where_a_mask_holds(x):
    y = x.clone()
    y[x > 0] = 2.0
    return y


def turned(x):
    pairs = torch.view_as_complex(x.view(1, -1, 8, 2))
    angle = torch.arange(8, device=x.device).float() / 8
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten(2)


IN_PLACE = {f.__name__: f for f in (
    halves, doubled, assigned, interleaved, one_entry, through_a_view, an_old_view_reads_anew,
    nothing_at_all, from_past_the_front, where_a_mask_holds,
)}  # fmt: skip


def batched_products(x):
    heads = x.view(1, -1, 4, 4)[0].transpose(0, 1)
    weight = torch.arange(64.0, device=x.device).view(4, 4, 4) / 64
    return torch.baddbmm(weight[:, :1], heads, weight).transpose(0, 1).reshape(x.shape)


BODIES = {
    **IN_PLACE,
    "complex numbers": turned,
    "sort": lambda x: x.sort(-1, descending=True).values,
    "sort upwards": lambda x: x.sort(-1).values + x.argsort(-1),
    "max and min": lambda x: (
        x + x.max(-1, keepdim=True).values * x.min(-1).values[..., None] + x.max(-1).indices[..., None]
    ),
    "argmax": lambda x: x + x.argmax(-1, keepdim=True),
    "cumsum": lambda x: x.cumsum(-1),
    "logsumexp": lambda x: x - x.logsumexp(-1, keepdim=True),
    "var and std": lambda x: x + x.var(-1, keepdim=True) + x.std(-1, unbiased=False, keepdim=True),
    "flip and roll": lambda x: x.flip(-1) + x.roll(3, -1),
    "triangles": lambda x: (
        x @ torch.ones(16, 16, device=x.device).tril(-1) + x @ torch.ones(16, 16, device=x.device).triu(2)
    ),
    "index along a dim": lambda x: x[..., torch.tensor([3, 1, 2, 2] * 4, device=x.device)],
    "index by a list": lambda x: x[..., [0, 5]].repeat(1, 1, 8) + x[..., [-2]],
    "index_select": lambda x: x.index_select(2, torch.arange(15, -1, -1, device=x.device)),
    "repeat": lambda x: x[..., :4].repeat(1, 1, 4),
    "numbers": lambda x: (
        x * torch.tensor(0.25, device=x.device) + torch.tensor([1.0, 2.0], device=x.device).repeat(8)
    ),
    "inverse error function": lambda x: x * torch.erfinv(torch.tensor(0.5, device=x.device)),
    "new tensors": lambda x: (
        x + x.new_ones(16) + x.new_full((1,), 3.0) + x.new_zeros(16) + torch.zeros_like(x)
    ),
    "soft functions": lambda x: (
        nn.functional.softplus(x) + nn.functional.logsigmoid(x) + x.expm1() + x.abs().log1p()
    ),
    "floor": lambda x: (3 * x).floor(),
    "slices past the ends": lambda x: torch.cat([x[..., -40:3], x[..., 9:2], x[..., 3:40], x[..., 99:]], -1),
    "clamps": lambda x: x.clamp_min(0.1) + x.clamp(-0.1, 0.2) + torch.max(x, -x) + torch.min(x, 2 * x),
    "logic": lambda x: torch.where((x > 0) & (x < 1) | (x < -1), x, 0.0),
    "attention inside of a token": lambda x: nn.functional.scaled_dot_product_attention(
        *(y.unflatten(-1, (4, 4)) for y in (x, 2 * x, x + 1)), scale=0.3
    ).flatten(2),
    "products of heads": batched_products,
    "padding of features": lambda x: (
        nn.functional.pad(x[..., :13], (1, 2), value=0.5) + nn.ZeroPad2d((1, -1, 0, 0))(x)
    ),
    "norms": lambda x: x / torch.linalg.vector_norm(x, dim=-1, keepdim=True),
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_body_computes_the_same(body):
    imported(body)


def test_a_write_to_a_tensor_of_its_own_costs_nothing():
    assert [n.op.name for n in imported(doubled).main.nodes] == ["embedding", "add", "mul", "linear"]


@pytest.mark.parametrize("body", [torch.expm1, torch.log1p, nn.functional.elu])
def test_functions_near_zero_keep_their_digits(body):
    tiny = imported(lambda x: body(x * 1e-9) * 1e9)
    assert {"exp", "log", "sub"}.isdisjoint(n.op.name for n in tiny.main.nodes)


def test_there_is_no_batch_dim_whatever_brings_one_along():
    batched = torch.linspace(-1, 1, 16).view(1, 1, 16)
    body = lambda x: x * batched.to(x.device) + x.new_ones(1, x.shape[1], 1).expand(1, -1, 16)  # noqa: E731
    types = [v.type for n in imported(body).main.nodes for v in n.results]
    assert [str(t) for t in types if "T" in str(t) and not str(t).split("[")[1].startswith("T")] == []


def test_tokens_come_before_heads_that_the_library_puts_in_front():
    """As DeepSeek makes its keys: what was never written is read by nobody."""

    def keys(x):
        heads = x.view(1, -1, 4, 4).transpose(1, 2)
        made = x.new_empty(1, 4, x.shape[1], 6)
        made[..., :4] = heads
        made[..., 4:] = heads.exp()[..., :1].expand(1, 4, -1, 2)
        return x + made.sum(-1).sum(1)[..., None]

    module, _ = run_pipeline(imported(keys), "canonicalize")
    results = {n.op.name: v.type.dims for n in module.main.nodes for v in n.results}
    assert {str(dims[0]) for dims in results.values()} == {"T"}
    assert not {"full", "permute"} & set(results)


def test_padding_by_a_token_in_front_shifts_each_sequence():
    class Shifting(Model):
        def forward(self, input_ids, position_ids):
            x = self.embed(input_ids)
            return self.head(x - nn.ZeroPad2d((0, 0, 1, -1))(x))

    model = Shifting(None).eval()
    ids = torch.arange(2, 14)
    with torch.inference_mode():
        (ours,) = Interpreter(trace_hf(model), LiveCheckpoint(model))(ids.int(), Seqs.of([5, 7]))
        expected = torch.cat([model(part[None], None)[0] for part in ids.split([5, 7])])
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("axis", ["sort", "flip", "cumsum"])
def test_tokens_are_not_mixed(axis):
    with pytest.raises(TraceError, match="mixes tokens of different sequences"):
        trace_hf(Model(lambda x: getattr(x, axis)(1) if axis != "sort" else x.sort(1).values))


def test_a_weight_is_not_changed():
    class Changing(Model):
        def forward(self, input_ids, position_ids):
            self.head.weight.mul_(2)
            return super().forward(input_ids, position_ids)

    with pytest.raises(TraceError, match="changes a weight or an input of the model"):
        trace_hf(Changing(lambda x: x).requires_grad_(False))
