"""Every promised family: the imported program computes what the library computes.

A family's model is tiny and random. Its program is traced from the config alone; only then does it meet
weights.
"""

import torch

from irloom.ir.parse import parse
from irloom.ir.show import show
from irloom.ir.verify import verify


def test_one_sequence_longer_than_the_traced_one(family):
    torch.testing.assert_close(family.run(family.parts[1:2]), family.logits[1], atol=1e-4, rtol=0)


def test_sequences_packed_in_one_batch(family):
    torch.testing.assert_close(family.run(family.parts), torch.cat(family.logits), atol=1e-4, rtol=0)


def test_the_program_is_well_formed_and_its_text_reads_back(family):
    verify(family.module)
    assert parse(show(family.module)) == family.module


def test_the_program_has_no_batch_dim_and_keeps_tokens_first(family):
    main = family.module.main
    assert [str(p.type) for p in main.data] == ["i32[T]", "seqs[T, S]"]
    assert str(main.returns[0].type) == f"f32[T, {family.model.config.vocab_size}]"
    assert not [n for n in main.nodes if n.op.name == "permute" and n.args[0] not in main.params]


def test_locations_name_module_and_source_line(family):
    (q, *_) = [n for n in family.module.main.nodes if n.results[0].name in ("q_proj", "qkv_proj", "c_attn")]
    path, _, place = q.loc.partition(" ")
    assert path.endswith((f".0.self_attn.{q.result.name}", f".0.attn.{q.result.name}"))
    assert place.startswith("modeling_")


def test_weights_bear_the_names_of_the_library(family):
    names = {str(p.weight) for p in family.module.main.weights}
    assert len(names) == len(family.module.main.weights), "a tied weight is one parameter"
