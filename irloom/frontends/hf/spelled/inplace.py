"""Writes in place as dataflow: what reads a tensor after an op changed it reads the op's result."""

from __future__ import annotations

from torch.fx import Node

from irloom.frontends.hf.memory import in_place
from irloom.frontends.hf.spelled.probe import Probe


def follow_writes(probe: Probe) -> int:
    """Rewrite a graph in place, where no other view of the memory is alive; how many writes there were."""
    done = 0
    for node in list(probe.graph.nodes):
        target = node.args[0] if in_place(node) and node.args else None
        if not isinstance(target, Node) or target.op == "placeholder":
            continue
        later = [u for u in target.users if probe.place[u] > probe.place[node]]
        sharing = [n for n, root in probe.roots.items() if root is probe.roots[target]] if later else []
        if later and {*sharing} <= {target, *_written(target, probe)}:
            for user in later:
                user.replace_input_with(target, node)
            done += 1
    if done:
        probe.survey()
    return done


def _written(target: Node, probe: Probe) -> list[Node]:
    """The results of writes to ``target``, and the views of these."""
    found = [u for u in target.users if in_place(u) and u.args[0] is target]
    for n in found:
        found += [u for u in n.users if probe.roots[u] is probe.roots[target] and u not in found]
    return found
