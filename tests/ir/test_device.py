"""Devices by name, and what is predicted for them: hand-computed on programs of one or two nodes."""

import pytest

from irloom.ir.cost import predicted_seconds
from irloom.ir.device import DEVICES, device
from irloom.ir.elem import ELEMS
from irloom.ir.errors import IRError
from irloom.ir.parse import parse

H200 = device("h200")
LINEAR = """def main(x: bf16[T, 4096], w: bf16[14336, 4096] = weight("w")):
    y = linear(x, w)
    return y"""


@pytest.mark.parametrize("d", DEVICES.values(), ids=DEVICES)
def test_figures_are_those_of_a_machine(d):
    """Narrower elements are computed no slower; a product balances between 20 and 1000 FLOPs a byte."""
    assert d.flops["f32"] < d.flops["bf16"] <= d.rate(ELEMS["f8e4m3"])
    assert d.flops["bf16"] == d.flops["f16"]
    assert 20 < d.flops["bf16"] / d.bandwidth < 1000
    assert d.memory > 16e9
    assert d.source


class TestNames:
    def test_any_case_and_figures_of_its_own(self):
        d = device("H200(bandwidth=4.3TB/s, bf16=790T, memory=64GiB)")
        assert (d.bandwidth, d.flops["bf16"], d.memory) == (4.3e12, 790e12, 64 * 2**30)
        assert d.flops["f8e4m3"] == H200.flops["f8e4m3"]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("h20", "no device 'h20'\nhint: did you mean 'h200'?"),
            ("zx81", "no device 'zx81'\nhint: known: a100-40gb, a100, .*, and cpu for this machine"),
            ("h200(speed=3)", "device h200: no figure 'speed'\nhint: it has bandwidth, memory, f32, bf16"),
            ("h200(bf16=fast)", "'fastB' is not a size"),
            ("h200(bf16=0)", "device h200: bf16 is 0"),
            ("h200(", "no device"),
        ],
    )
    def test_what_is_none_is_refused(self, text, message):
        with pytest.raises(IRError, match=message):
            device(text)

    def test_what_a_device_cannot_compute_in_it_computes_in_a_wider_element(self):
        assert device("a100").rate(ELEMS["f8e4m3"]) == 312e12
        assert device("h200").rate(ELEMS["i4"]) == device("h200").flops["i8"]
        assert device("h200").rate(ELEMS["i32"]) == device("h200").flops["f32"]


class TestTime:
    def test_one_row_is_bound_by_memory(self):
        """The weight, a row in, a row out, at 4.8 TB/s."""
        seconds = predicted_seconds(parse(LINEAR), H200, 1, 1, 1)
        assert seconds.memory == pytest.approx(2 * (4096 * 14336 + 4096 + 14336) / 4.8e12)
        assert (seconds.compute, seconds.bound) == (0, "memory")

    def test_many_rows_are_bound_by_compute(self):
        seconds = predicted_seconds(parse(LINEAR), H200, 2048, 1, 2048)
        assert seconds.compute == pytest.approx(2 * 2048 * 4096 * 14336 / 989.4e12)
        assert (seconds.memory, seconds.bound) == (0, "compute")

    def test_a_step_is_the_sum_of_its_nodes(self):
        m = parse(LINEAR.replace("return y", "z = silu(y)\n    return z"))
        each = [predicted_seconds(n, H200, 2048, 1, 2048) for n in m.main.nodes]
        assert predicted_seconds(m, H200, 2048, 1, 2048).total == sum(s.total for s in each)
        assert [s.bound for s in each] == ["compute", "memory"]

    def test_packed_weights_are_read_packed_and_computed_in_the_rows_element(self):
        m = parse(f"i4g128 = quant(i4, group=128, scale=bf16)\n\n{LINEAR.replace('w: bf16', 'w: i4g128')}")
        stored = 4096 * 14336 // 2 + 4096 * 14336 // 128 * 2
        assert predicted_seconds(m, H200, 1, 1, 1).memory == pytest.approx(
            (stored + 2 * (4096 + 14336)) / 4.8e12
        )
        assert predicted_seconds(m, H200, 4096, 1, 4096).compute == pytest.approx(
            2 * 4096 * 4096 * 14336 / 989.4e12
        )

    def test_rows_in_few_bits_are_computed_in_those(self):
        text = LINEAR.replace("w: bf16", "w: f8row").replace("linear(x, w)", "linear(q, w, elem=bf16)")
        text = text.replace("    y", "    q = quantize(x, to=f8row)\n    y")
        m = parse(f"f8row = quant(f8e4m3, group=0, scale=f32)\n\n{text}")
        assert predicted_seconds(m.main.nodes[1], H200, 4096, 1, 4096).compute == pytest.approx(
            2 * 4096 * 4096 * 14336 / 1978.9e12
        )
