"""What only the weights can tell: a tensor that is stored twice."""

from irloom.ir.checkpoint import RandomCheckpoint
from irloom.ir.parse import parse
from irloom.passes import run_pipeline
from irloom.passes.check import compare
from irloom.passes.dedupe_weights import DedupeWeights

PROGRAM = """
def main(
    ids: i32[T],
    embed: f32[32, 8] = weight("embed.weight"),
    head: f32[32, 8] = weight("lm_head.weight"),
):
    x = embedding(ids, embed)
    y = linear(x, head)
    return y
"""


class Stored(RandomCheckpoint):
    """Both names hold one tensor, or two."""

    def __init__(self, tied):
        super().__init__(0, {"embed.weight": (32, 8), "lm_head.weight": (32, 8)})
        self.tied = tied

    def read(self, name):
        return super().read("embed.weight" if self.tied else name)


def test_a_tensor_that_is_said_to_be_another_is_read_once_and_numbers_tell_whether_it_is():
    p = DedupeWeights(same=("lm_head.weight=embed.weight",))
    before = parse(PROGRAM)
    after, _ = run_pipeline(before, [p])
    assert [w.name for w in after.main.weights] == ["embed"]
    assert compare(before, after, p, Stored(tied=True)).max_abs == 0
    assert not compare(before, after, p, Stored(tied=False)).ok
