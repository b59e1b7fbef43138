"""The one scoring pass: every target once, in the log's order, whatever the batches, under every kind of split."""

import numpy as np
import pytest
import torch

from builders import LIKE, NEXT, recipe, stir
from genre.data.sequences.batches import collate
from genre.data.splits import TEST, VALID
from genre.evaluation.ranking import rank_in_blocks
from genre.training.assembly import assemble
from genre.training.prediction import outputs, predict

SPLITS = [
    {"kind": "temporal", "valid": 0.1, "test": 0.2},
    {"kind": "last_n", "n": 3},
    {"kind": "given", "test_rows": "100-300", "valid": 0.1},
]


@pytest.fixture(params=SPLITS, ids=lambda split: split["kind"])
def assembly(request, base, tiny, log):
    made = assemble(recipe(tiny, LIKE, NEXT, data={"split": request.param, "max_events": 10}), log, base)
    stir(made)
    yield made
    made.model.release()


def predicted(assembly, part=TEST, tokens=2048):
    return predict(assembly.model, assembly.builder, assembly.split, part, max_events=10, batch_tokens=tokens)


@pytest.mark.parametrize("part", [VALID, TEST])
def test_every_target_has_one_score_in_the_logs_order(assembly, part):
    wanted = np.flatnonzero(assembly.split.part == part)
    assert len(wanted) > 50
    for task, (targets, scores, top) in predicted(assembly, part).items():
        assert targets.event.tolist() == wanted.tolist() and len(scores) == len(wanted)
        assert targets.item.tolist() == assembly.log.item_codes[wanted].tolist()
        assert (top is None) == (task == "like") and (targets.label is None) == (task == "next_item")
    like, _, _ = predicted(assembly, part)["like"]
    assert like.label.tolist() == (assembly.log.column("rating")[wanted] > 3).astype(float).tolist()


def test_the_size_of_batches_changes_nothing(assembly):
    (_, large, _), (_, small, _) = (predicted(assembly, tokens=tokens)["like"] for tokens in (16384, 60))
    assert np.abs(large - small).max() < 1e-5 and large.std() > 1e-3


def test_ranks_are_those_of_the_scores_over_the_catalogue(assembly):
    targets, ranks, top = predicted(assembly)["next_item"]
    table = np.zeros((len(targets), assembly.log.catalogue.size), dtype=np.float32)
    place = {event: row for row, event in enumerate(targets.event.tolist())}
    for task, events, scores in outputs(assembly.model, assembly.builder, assembly.split, TEST, max_events=10, batch_tokens=2048):
        if task == "next_item":
            table[[place[event] for event in events.tolist()]] = scores
    wanted = rank_in_blocks(assembly.log, assembly.split, targets, [(slice(0, len(targets)), table)], seen="masked")
    assert ranks.tolist() == wanted.ranks.tolist() and top.tolist() == wanted.top.tolist()


@torch.no_grad()
def test_a_score_is_that_of_the_history_before_the_target(assembly):
    """By hand, for some targets: the events before it (training ones under `given`) and then the item, nothing else."""
    targets, scores, _ = predicted(assembly)["like"]
    builder, log, model = assembly.builder, assembly.log, assembly.model
    model.eval()
    for place in range(0, len(targets), 17):
        event, user = int(targets.event[place]), int(targets.user[place])
        own = np.arange(log.user_offsets[user], log.user_offsets[user + 1])
        if assembly.split.transductive:
            history = own[assembly.split.part[own] == 0][-10:]
        else:
            history = own[own < event]
            if len(history) > 9:
                continue  # where windows cut depends on the other targets
        row = builder.layout.build(
            builder.prefix(user),
            log.item_codes[history],
            builder.feedback[history],
            candidates=log.item_codes[[event]],
            candidate_events=np.array([0]),
            candidate_times=np.array([(history < event).sum()]),
        )
        batch = collate([row], {"like": ("item", np.array([0.0]))})
        alone = model.heads["like"].score(model.output("like", model.hidden(batch), batch)).item()
        assert alone == pytest.approx(scores[place], abs=1e-4)


def test_it_leaves_the_model_in_the_mode_it_was_in(assembly):
    for training in (True, False):
        assembly.model.train(training)
        predicted(assembly)
        assert assembly.model.training is training
