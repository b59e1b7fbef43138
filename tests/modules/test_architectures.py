"""Bases of today: each trains, is published, loads in stock PEFT with the same states, and is served with training's scores."""

import numpy as np
import pytest
import torch

import genre
from architectures import CAUSAL, ENCODERS, MORE_CAUSAL, REFUSED, WITH_WEIGHTS, config_of, write_model
from builders import GOOD, LIKE, recipe, text_recipe
from fakes import planted_log, planted_texts
from genre.engine.versions import read_adapter
from genre.errors import BaseModelError, InputError
from genre.jobs.loading import restore
from genre.modules.base.attention import block_attention, plan_blocks
from genre.modules.base.base import Base
from genre.modules.base.kinds import VERIFIED
from genre.modules.base.quiet import quiet
from genre.training.prediction import predict

# PEFT 0.21 asks transformers 5.23 for a property by its former name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
HISTORY, BRANCHES = 14, (3, 2, 4)
WHOLE = ("Gemma 3 (alternating)", "Phi 3 (fused q, k, v; sliding)")


def slow_but(names, *quick):
    """Parameters of which all but some are slow: whole runs of a second or two each."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    made = {}

    def get(name):
        if name not in made:
            made[name] = write_model(tmp_path_factory.mktemp("base") / "base", config_of(*(CAUSAL | MORE_CAUSAL)[name]))
        return made[name]

    return get


def stock(folder, **options):
    from transformers import AutoModelForCausalLM

    with quiet():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()


def close(found, wanted, bound=1e-5):
    return float((found - wanted).norm()) <= bound * float(wanted.norm())


@pytest.mark.parametrize("name", CAUSAL | MORE_CAUSAL)
@torch.no_grad()
def test_states_of_rows_and_branches_are_those_of_transformers(name, folder_of):
    """Of rows longer than the sliding window, by a mask, by blocks and packed; its words' logits too."""
    folder = folder_of(name)
    base, theirs = Base.load(str(folder)), stock(folder, attn_implementation="eager")
    ids = torch.randint(3, 250, (1, HISTORY + sum(BRANCHES)), generator=torch.Generator().manual_seed(1))
    embeds = base.embedding(ids)
    plain = theirs.base_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
    assert close(base.hidden(embeds), plain)
    words = torch.tensor([5, 9, 77])
    assert close(base.word_logits(plain[0], words), theirs(inputs_embeds=embeds, use_cache=False).logits[0][:, words])
    true = float(base.embedding(torch.arange(260)).square().mean().sqrt())
    assert base.embedding_rms == pytest.approx(true, rel=0.01)
    total = HISTORY + sum(BRANCHES)
    positions, spans, wanted, start = torch.arange(total)[None], np.zeros((total, 2), np.int64), [], HISTORY
    mask = torch.ones(total, total, dtype=torch.bool).tril()
    for length in BRANCHES:
        own = slice(start, start + length)
        positions[0, own] = HISTORY + torch.arange(length)
        spans[own], mask[own, HISTORY:start] = (HISTORY, start), False
        alone = torch.cat([embeds[:, :HISTORY], embeds[:, own]], dim=1)
        states = theirs.base_model(inputs_embeds=alone, use_cache=False).last_hidden_state[0]
        wanted += [states[:HISTORY], states[HISTORY:]] if start == HISTORY else [states[HISTORY:]]
        start += length
    expected, whole = torch.cat(wanted), mask[None, None]
    assert close(base.hidden(embeds, positions, whole)[0], expected)
    if base.takes_blocks:
        with block_attention(base.model):
            assert close(base.hidden(embeds, positions, blocks=plan_blocks([spans], positions))[0], expected)
            packed = base.packed([embeds, embeds[:, :9]], [positions, None], [whole, None])
        assert close(packed[0][0], expected) and close(packed[1][0], plain[0, :9])


@pytest.mark.parametrize("name", slow_but(CAUSAL | MORE_CAUSAL, *WHOLE))
def test_it_trains_is_published_and_serves_as_peft_and_training_have_it(name, folder_of, tmp_path):
    from peft import PeftModel

    folder, log = folder_of(name), planted_log(users=8, items=12, events=12)
    base, registry = Base.load(str(folder), depth=3), genre.Registry(tmp_path / "registry")
    wanted = recipe(folder, LIKE, base={"name": str(folder), "depth": 3}, train={"epochs": 1, "checkpoint_activations": True})
    version = registry.publish(genre.train(wanted, log=log, base=base, registry=registry, folder=tmp_path / "run"))
    ids = torch.randint(3, 250, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        bare = base.hidden(base.embedding(ids))
    model, builder, split = restore(read_adapter(registry, "like", base), log, base)
    targets, scores, _ = predict(model, builder, split, 2, max_events=64, batch_tokens=4096)["like"]
    with torch.no_grad():
        states = base.hidden(base.embedding(ids))
    model.release()
    assert not close(states, bare, 1e-4)  # the adapter does something
    out = registry.export(version, tmp_path / "out", base=folder)
    theirs = PeftModel.from_pretrained(stock(out / "base"), out).eval()
    assert theirs.config.num_hidden_layers == 3
    with torch.no_grad():
        assert close(theirs.base_model.model.base_model(input_ids=ids, use_cache=False).last_hidden_state, states)
    chosen = range(0, len(scores), max(1, len(scores) // 5))
    with genre.Engine(base, registry, data=log) as engine:
        requests = []
        for number in chosen:
            event = targets.event[number]
            user = log.user_ids[log.user_codes[event]]
            history = log.history(user)[: event - int(log.user_offsets[log.user_codes[event]])][-15:]
            item = log.catalogue.item_ids[log.item_codes[event]]
            people = log.users.row(log.user_code(user), named=True)
            requests.append(genre.Request("like", history=history, candidates=["i3", item, "i5"], user=people))
        answers = engine.score(requests)
    found = [{each.item_id: each.score for each in answer.results} for answer in answers]
    own = [request.candidates[1] for request in requests]
    assert np.allclose([each[item] for each, item in zip(found, own, strict=True)], scores[list(chosen)], atol=1e-4)


@pytest.mark.parametrize("name", slow_but(ENCODERS, "ModernBERT (alternating)"))
def test_an_encoder_trains_on_texts_and_serves(name, tmp_path):
    from peft import PeftModel
    from transformers import AutoModel

    folder = write_model(tmp_path / "base", config_of(*ENCODERS[name]), encoder=True)
    base, registry, texts = Base.load(str(folder)), genre.Registry(tmp_path / "registry"), planted_texts(groups=16)
    assert base.bidirectional
    ids, lengths = torch.randint(3, 250, (2, 30), generator=torch.Generator().manual_seed(0)), torch.tensor([30, 17])
    wanted = text_recipe(folder, GOOD, train={"epochs": 1})
    version = registry.publish(genre.train(wanted, log=texts, base=base, registry=registry, folder=tmp_path / "run"))
    model, _, _ = restore(read_adapter(registry, "good", base), texts, base)
    with torch.no_grad():
        states = base.hidden(base.embedding(ids), lengths=lengths)
    model.release()
    out = registry.export(version, tmp_path / "out", base=folder)
    with quiet():
        theirs = PeftModel.from_pretrained(AutoModel.from_pretrained(folder, dtype=torch.float32), out).eval()
    with torch.no_grad():
        there = (torch.arange(30) < lengths[:, None]).long()
        found = theirs(input_ids=ids, attention_mask=there).last_hidden_state
        bare = base.hidden(base.embedding(ids), lengths=lengths)
    assert close(found[0], states[0]) and close(found[1, :17], states[1, :17]) and not close(bare[0], states[0], 1e-4)


@pytest.mark.parametrize("name", REFUSED)
def test_others_are_refused_with_the_reason(name, tmp_path):
    kind, options, message = REFUSED[name]
    folder = write_model(tmp_path / "base", config_of(kind, options), weights=name in WITH_WEIGHTS)
    with pytest.raises(BaseModelError, match=message):
        Base.load(str(folder))


def test_a_row_longer_than_learned_positions_is_refused(tmp_path):
    folder = write_model(tmp_path / "base", config_of(*CAUSAL["GPT-2 (transposed linears)"]))
    base = Base.load(str(folder))
    with pytest.raises(InputError, match="a row is longer than the base can read: got 129 tokens; expected at most 128; give"):
        base.hidden(torch.zeros(1, 129, 32))
    positions, mask = torch.cat([torch.arange(128), torch.arange(4)])[None], torch.ones(1, 1, 132, 132, dtype=torch.bool)
    assert base.hidden(torch.zeros(1, 132, 32), positions, mask).shape == (1, 132, 32)  # branches go back to earlier positions
    assert Base.load(str(write_model(tmp_path / "phi", config_of(*CAUSAL["Phi 4 mini (long positions)"])))).position_limit == 128


def test_every_type_that_needs_no_check_at_loading_is_tested():
    found = {config_of(*each).model_type for each in (CAUSAL | MORE_CAUSAL).values()}
    assert found == set(VERIFIED)
