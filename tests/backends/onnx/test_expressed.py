"""What becomes of each op is said before anything is exported."""

from irloom.backends.core import NetworkBackend, backend
from tests.backends.kinds import model


def test_an_op_is_one_operator_or_several_and_then_it_says_why():
    """Views, padding, and masks that layers share count for nobody; Attention has no place for a sink."""
    made = backend("onnx")
    assert isinstance(made, NetworkBackend)
    found = made.networks(model("sinks per head").planned("onnx"))
    said = {e.op: (e.how, e.nodes, e.layers) for e in found.ops}
    assert found.whole
    assert said["linear"] == ("native", 5, ("Gemm",))
    assert said["rope"] == ("native", 4, ("RotaryEmbedding",))
    assert said["kv_append"] == ("native", 2, ("TensorScatter",))
    assert said["reshape"][:1] + said["reshape"][2:] == ("native", ())
    (attention,) = (e for e in found.ops if e.op == "paged_attention")
    assert attention.how == "composed"
    assert {"MatMul", "Softmax"} <= set(attention.layers)
    assert "sinks" in attention.form
