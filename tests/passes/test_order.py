"""Where a pass may stand in a pipeline, and what is said where it cannot."""

from dataclasses import dataclass
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from irloom.ir.errors import PipelineError
from irloom.passes import Changes, Pass, check_order, name_of, place
from irloom.passes.order import reasons


def made(name, **order):
    """A pass called ``name`` with these order constraints, as a file of its own would define it."""

    @dataclass(frozen=True)
    class Made(Pass):
        def run(self, m):
            return Changes()

    Made.__module__ = name.replace("-", "_")
    for word, said in order.items():
        setattr(Made, word, said)
    return Made()


def names(passes):
    return [name_of(type(p)) for p in passes]


CLEAN, RAISE, OUTLINE, FUSE = (made(n) for n in ("clean", "lift", "outline-it", "fuse-it"))
PLAN = made("plan", after=("*",))
PIPELINE = [CLEAN, RAISE, CLEAN, OUTLINE, FUSE, PLAN]


def placed(*new, pipeline=PIPELINE):
    return names(place(pipeline, new))


class TestPlace:
    def test_directly_after_the_last_pass_that_it_follows(self):
        assert placed(made("quiet", after=("lift",)))[:3] == ["clean", "lift", "quiet"]
        assert placed(made("quiet", after=("outline-it", "lift")))[3:5] == ["outline-it", "quiet"]

    def test_after_every_run_of_a_pass_that_runs_twice_where_it_may(self):
        assert placed(made("quiet", after=("clean",)))[2:5] == ["clean", "quiet", "outline-it"]
        assert placed(made("quiet", after=("clean",), before=("lift",)))[:3] == ["clean", "quiet", "lift"]

    def test_directly_before_the_first_pass_that_it_precedes_when_it_follows_nothing(self):
        assert placed(made("quiet", before=("fuse-it", "outline-it")))[2:4] == ["clean", "quiet"]

    def test_at_the_end_when_nothing_is_said_but_not_behind_what_is_last(self):
        assert placed(made("quiet"))[-2:] == ["quiet", "plan"]
        assert placed(made("quiet", after=("*", "plan")))[-2:] == ["plan", "quiet"]
        assert placed(made("quiet", before=("*",)))[0] == "quiet"

    def test_what_the_others_say_of_it_counts(self):
        pipeline = [CLEAN, made("lift", after=("quiet",)), OUTLINE]
        assert placed(made("quiet"), pipeline=pipeline) == ["clean", "quiet", "lift", "outline-it"]

    def test_passes_that_are_not_there_do_not_count(self):
        assert placed(made("quiet", after=("nothing",), before=("nowhere",)))[-2] == "quiet"

    def test_several_at_once_keep_to_each_other(self):
        loud = made("loud", before=("quiet",))
        assert placed(made("quiet", before=("lift",)), loud)[:4] == ["clean", "loud", "quiet", "lift"]
        twins = placed(made("one", after=("lift",)), made("two", after=("lift",)))
        assert twins[2:4] == ["one", "two"]

    def test_it_follows_what_it_requires_and_nothing_that_undoes_that(self):
        pipeline = [CLEAN, RAISE, made("muddle", preserves=()), OUTLINE]
        assert placed(made("quiet", requires=("lift",)), pipeline=pipeline)[1:3] == ["lift", "quiet"]

    def test_it_does_not_stand_where_it_would_undo_what_is_required(self):
        pipeline = [RAISE, FUSE, made("needs", requires=("lift",)), OUTLINE]
        undoes = made("undoes", after=("fuse-it",), preserves=())
        assert placed(undoes, pipeline=pipeline) == ["lift", "fuse-it", "needs", "undoes", "outline-it"]

    def test_the_reasons_are_those_of_the_nearest_on_both_sides(self):
        quiet = made("quiet", after=("clean", "lift"), before=("outline-it", "fuse-it"))
        said = reasons("quiet", place(PIPELINE, [quiet]))
        assert [str(c) for c in said] == ["quiet says after lift", "quiet says before outline-it"]


class TestCollisions:
    def test_no_place_names_both_constraints(self):
        with pytest.raises(PipelineError) as caught:
            placed(made("quiet", after=("fuse-it",), before=("lift",)))
        assert str(caught.value) == (
            "quiet must run after fuse-it (quiet says after) and before lift (quiet says before): "
            "lift comes before fuse-it\n"
            "hint: leave quiet out, or one of the two"
        )

    def test_the_constraint_may_be_the_other_passs(self):
        pipeline = [CLEAN, made("lift", after=("quiet",)), OUTLINE]
        with pytest.raises(PipelineError) as caught:
            placed(made("quiet", after=("outline-it",)), pipeline=pipeline)
        assert str(caught.value).startswith(
            "quiet must run after outline-it (quiet says after) and before lift (lift says after): "
            "lift comes before outline-it\n"
        )

    def test_new_passes_that_contradict_each_other_are_named(self):
        with pytest.raises(PipelineError) as caught:
            placed(made("quiet", after=("loud",)), made("loud", after=("quiet",)))
        assert str(caught.value) == (
            "no order will do: loud says after quiet, quiet says after loud\n"
            "hint: leave one of loud, quiet out"
        )

    def test_a_pipeline_that_no_order_would_mend_says_so(self):
        passes = [made("a", after=("c",)), made("b", after=("a",)), made("c", after=("b",))]
        with pytest.raises(PipelineError) as caught:
            check_order(passes)
        assert str(caught.value) == (
            "no order will do: b says after a, c says after b, a says after c\nhint: leave one of a, b, c out"
        )

    def test_one_that_an_order_would_mend_says_which(self):
        with pytest.raises(PipelineError) as caught:
            check_order([made("quiet", after=("loud",)), made("loud")])
        assert str(caught.value) == (
            "quiet must run after loud\nhint: quiet says after = ('loud',): exchange the two"
        )

    def test_what_must_be_last_is(self):
        with pytest.raises(PipelineError, match="plan must run after fuse-it"):
            check_order([PLAN, FUSE])
        check_order([FUSE], ran=["plan"])


OLD, NEW = ("e0", "e1", "e2", "e3"), ("n0", "n1", "n2")


@st.composite
def said(draw):
    """What every pass says: the old ones of the new, the new ones of all."""
    of = {name: NEW if name in OLD else [n for n in (*OLD, *NEW) if n != name] for name in (*OLD, *NEW)}
    words = {name: st.sets(st.sampled_from(of[name]), max_size=1) for name in of}
    return {name: {word: tuple(sorted(draw(words[name]))) for word in ("after", "before")} for name in of}


@given(said())
@settings(max_examples=150, deadline=None)
def test_a_place_is_found_wherever_there_is_one(order):
    """Against every way to put three passes among four."""

    def obeyed(names):
        at = {name: i for i, name in enumerate(names)}
        return all(
            all(at[other] < at[name] for other in words["after"])
            and all(at[name] < at[other] for other in words["before"])
            for name, words in order.items()
        )

    passes = {name: made(name, **words) for name, words in order.items()}
    ways = (w for w in permutations([*OLD, *NEW]) if [n for n in w if n in OLD] == list(OLD))
    try:
        found = names(place([passes[n] for n in OLD], [passes[n] for n in NEW]))
    except PipelineError:
        assert not any(map(obeyed, ways))
    else:
        assert [n for n in found if n in OLD] == list(OLD)
        assert obeyed(found)
