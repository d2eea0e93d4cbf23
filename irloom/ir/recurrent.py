"""Recurrent ops: one function defines an op over whole sequences, and its twin that carries a state.

``@recurrent`` decorates what happens to one sequence: its tokens and a state in, results and the state after
them out. Of that it makes two ops. ``causal_conv`` starts every sequence from a state of zeros, which is what
a traced model means. ``carried_causal_conv`` reads each sequence's state from a cache and returns the cache
that holds the states after this step, so that chunks of a prompt and single tokens go on where the last ones
ended. ``kv-cache`` puts the second in the place of the first.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .dims import Dim
from .elem import AnyElem, State, elem_of
from .errors import IRError
from .op import OPS, Attrs, Op
from .seqs import Seqs, StateCache
from .signature import Operand, Signature, Term, parse_signature
from .types import Type

PREFIX = "carried_"
TOKENS = "t"


def recurrent(signature: str, *, state: str) -> Callable[[Callable[..., Any]], Op]:
    """Define an op and its carried twin from what it does to one sequence.

    The body takes the operands of ``signature`` with the tokens of one sequence (whose dim is ``t``), a
    keyword ``state`` with the dims ``state``, and attributes; it returns the results and the state after its
    tokens. A state of zeros is that of a sequence without tokens. Both ops take ``seqs`` behind their last
    required operand, the carried one the states behind that. The op must be given its ``.state`` hook: the
    type of one sequence's state.
    """

    def wrap(body: Callable[..., Any]) -> Op:
        once = _Recurrence(body, parse_signature(signature))
        carried = once.op(PREFIX, f"slots {state}", once.carry, None)
        return once.join(once.op("", None, once.scan, carried), carried)

    return wrap


class _Recurrence:
    """The two ops of one body."""

    def __init__(self, body: Callable[..., Any], signature: Signature) -> None:
        self.body, self.signature = body, signature
        params = list(inspect.signature(body).parameters.values())
        self.operands = tuple(p.name for p in params if p.kind is not p.KEYWORD_ONLY)
        self.attrs = {p.name: p.default for p in params if p.kind is p.KEYWORD_ONLY and p.name != "state"}
        self.required = sum(not term.optional for term in signature.ins)
        self.by_token = [_first(term) == TOKENS for term in signature.ins]

    def op(self, prefix: str, state: str | None, reference: Callable[..., Any], carried: Op | None) -> Op:
        """One of the two, registered; with a ``state`` term it takes and returns states."""
        given = ["t %s"] if state is None else ["t %s", state]
        names = ["seqs"] if state is None else ["seqs", "states"]
        ins, outs = (part.split(",") for part in self.signature.text.split("->"))
        ins[self.required : self.required] = given
        text = f"{', '.join(map(str.strip, ins))} -> {', '.join(map(str.strip, [*outs, *given[1:]]))}"
        code, name = self.body.__code__, self.body.__name__
        doc = f"``{name}`` that goes on from the states of a cache, and renews them."
        new = Op(
            name=prefix + name,
            doc=(inspect.getdoc(self.body) or "") if state is None else doc,
            signature=parse_signature(text),
            operands=(*self.operands[: self.required], *names, *self.operands[self.required :]),
            variadic=False,
            attrs=self.attrs,
            reference=reference,
            place=f"{code.co_filename}:{code.co_firstlineno}",
            carried=carried,
        )
        OPS.add(new)
        return new

    def join(self, plain: Op, carried: Op) -> Op:
        """The carried op's types and cost follow from those of the plain one."""
        self.plain = plain
        carried.dtype(lambda operands, attrs: self._elems(operands))
        carried.verify(lambda operands, attrs: self._verify(carried, operands, attrs))
        carried.flops(lambda operands, attrs: plain.count_flops(self._stateless(operands), attrs))
        carried.bytes(self._bytes)
        return plain

    # bodies

    def scan(self, *operands: Any, **attrs: Any) -> Any:
        """Every sequence from a state of zeros."""
        seqs: Seqs = operands[self.required]
        types = [Type(elem_of(x.dtype), tuple(x.shape)) if isinstance(x, Tensor) else None for x in operands]
        state: Type = self.plain.hooks["state"](types, attrs)
        zeros = torch.zeros(
            [int(str(d)) for d in state.dims], dtype=state.plain.torch, device=operands[0].device
        )
        given = [*operands[: self.required], *operands[self.required + 1 :]]
        return _joined([self._one(given, span, zeros, attrs)[0] for span in seqs.spans()])

    def carry(self, *operands: Any, **attrs: Any) -> Any:
        """Every sequence from its state in the cache."""
        seqs: Seqs = operands[self.required]
        cache: StateCache = operands[self.required + 1]
        given = [*operands[: self.required], *operands[self.required + 2 :]]
        spans = enumerate(seqs.spans())
        done = [self._one(given, span, cache.read(seqs, s), attrs) for s, span in spans]
        results = _joined([results for results, _ in done])
        kept = cache.written(seqs, [state for _, state in done])
        return (*results, kept) if isinstance(results, tuple) else (results, kept)

    def _one(
        self, given: Sequence[Any], span: tuple[int, int], state: Tensor, attrs: Mapping[str, Any]
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Results and state of one sequence."""
        a, b = span
        rows = [
            x[a:b] if isinstance(x, Tensor) and own else x
            for x, own in zip(given, self.by_token, strict=False)
        ]
        *results, after = self.body(*rows, state=state, **attrs)
        return tuple(results), after

    # types

    def _stateless(self, operands: Sequence[Operand]) -> list[Operand]:
        """The operands without the states."""
        return [x for i, x in enumerate(operands) if i != self.required + 1]

    def _elems(self, operands: Sequence[Operand]) -> tuple[AnyElem, ...]:
        first, states = operands[0], operands[self.required + 1]
        assert isinstance(first, Type) and isinstance(states, Type)
        return (*(first.elem,) * len(self.signature.outs), states.elem)

    def _bytes(self, operands: Sequence[Operand], attrs: Attrs) -> Dim:
        """Those of the plain op; and each sequence's state, read and written."""
        seqs, states = operands[self.required : self.required + 2]
        assert isinstance(seqs, Type) and isinstance(states, Type)
        one = states.elem.nbytes((1, *states.dims[1:]))
        return self.plain.count_bytes(self._stateless(operands), attrs) + seqs.dims[1] * one * 2

    def _verify(self, carried: Op, operands: Sequence[Operand], attrs: Attrs) -> None:
        states = operands[self.required + 1] if len(operands) > self.required + 1 else None
        if not isinstance(states, Type) or not isinstance(states.elem, State):
            raise IRError(
                f"{carried.name}: operand `states` is {states}, no cache of states",
                hint="state[elem, every][slots, ...]",
            )
        wanted = self.plain.hooks["state"](self._stateless(operands), attrs)
        if states.dims[1:] != wanted.dims:
            raise IRError(f"{carried.name}: states are {states}, but those of a sequence are {wanted}")


def _first(term: Term) -> str:
    return term.axes[0].factors[0] if term.axes else ""


def _joined(parts: Sequence[tuple[Tensor, ...]]) -> Any:
    """Results of the sequences one after another."""
    first, *more = (torch.cat(rows) for rows in zip(*parts, strict=True))
    return (first, *more) if more else first
