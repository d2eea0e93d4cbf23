"""Every pass asks before each change: with fuel for some it makes those alone, and the program is right."""

import pytest

from irloom.driver import Choice, passes_of
from irloom.passes import limited
from irloom.passes.bisect import attempt
from irloom.passes.random_weights import RandomWeights
from irloom.passes.session import plan_session
from irloom.passes.shared_weights import SharedWeights
from irloom.passes.trial import Trial
from irloom.passes.verified import run_as_far
from tests.passes.planted import program


@pytest.mark.parametrize("model", ["gemma2", "qwen3_moe", "deepseek"])
def test_a_pass_that_runs_out_of_fuel_leaves_a_right_program(model):
    ran = run_as_far(program(model), passes_of(Choice()))
    assert ran.error is None
    session = plan_session(ran.modules)
    trial = Trial(session, SharedWeights(RandomWeights(ran.modules[:1]), limit=1 << 30))
    for step in ran.record.steps:
        with limited(None) as fuel:
            step.ran.run(step.before.copy())
        assert bool(fuel.spent) == bool(step.changes), f"{step.name} makes changes without asking"
        trial.start(step.before)
        for n in {0, 1, fuel.spent // 2} if fuel.spent else {0}:
            tried = attempt(step.before, step.ran, trial, n)
            assert tried.failure is None, f"{step.name} with fuel for {n} of {fuel.spent}: {tried.failure}"
            assert n or (not tried.places and tried.module == step.before), f"{step.name} without fuel"
