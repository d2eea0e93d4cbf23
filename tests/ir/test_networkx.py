"""A function as a graph: a vertex per parameter and statement, an edge per read."""

import networkx as nx

from irloom.ir.parse import parse

PROGRAM = """
def layer(x: f32[T, 8], r: f32[T, 8], w: f32[8, 8] = weight("{i}")):
    h = linear(x, w)  # mlp
    y = add(h, r)
    return y

def main(x: f32[T, 8], w: f32[8] = weight("norm")):
    a = mul(x, x)
    values, indices = topk(a, k=2)
    for i in range(2):
        a = layer[i](a, x)
    b = layer[2](a, x)
    c = rms_norm(b, w)  # norm
    return c, indices, c
"""


def graph() -> "nx.MultiDiGraph[str]":
    return parse(PROGRAM).to_networkx()


def test_vertices_are_parameters_statements_and_the_return():
    kinds = {name: (facts["kind"], facts["op"]) for name, facts in graph().nodes(data=True)}
    assert kinds == {
        "x": ("input", ""),
        "w": ("weight", ""),
        "a": ("node", "mul"),
        "values": ("node", "topk"),
        "a#2": ("loop", "for"),
        "b": ("call", "layer"),
        "c": ("node", "rms_norm"),
        "return": ("return", "return"),
    }


def test_edges_are_reads():
    edges = [(a, b, facts["value"], facts["operand"]) for a, b, facts in graph().edges(data=True)]
    assert sorted(edges) == sorted(
        [
            ("x", "a", "x", 0),
            ("x", "a", "x", 1),
            ("a", "values", "a", 0),
            ("a", "a#2", "a", 0),
            ("x", "a#2", "x", 1),
            ("a#2", "b", "a", 0),
            ("x", "b", "x", 1),
            ("b", "c", "b", 0),
            ("w", "c", "w", 1),
            ("c", "return", "c", 0),
            ("values", "return", "indices", 1),
            ("c", "return", "c", 2),
        ]
    )


def test_facts_of_a_vertex():
    g = graph()
    assert g.nodes["c"] == {"kind": "node", "op": "rms_norm", "type": "f32[T, 8]", "loc": "norm"}
    assert g.nodes["w"]["type"] == "f32[8]"


def test_any_function_has_a_graph():
    g = parse(PROGRAM).to_networkx("layer")
    assert g.graph["name"] == "layer"
    assert list(g.predecessors("h")) == ["x", "w"]
    assert g.nodes["h"]["loc"] == "mlp"


def test_graph_algorithms_run_on_it():
    g = graph()
    assert nx.is_directed_acyclic_graph(g)
    assert nx.ancestors(g, "b") == {"x", "a", "a#2"}
    assert list(nx.topological_sort(g))[-1] == "return"
