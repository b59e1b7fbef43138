"""A batch in pieces: rows exactly once, shares that add up, and gradients equal to the whole batch's."""

import numpy as np
import pytest
import torch

from builders import LIKE, NEXT, RATING, rows_of, stir, with_values
from genre.data.sequences.batches import collate
from genre.data.sequences.windows import training_windows
from genre.distributed import Processes
from genre.progress import Reporter
from genre.training import Loop, fit
from genre.training.micro_batches import count_targets, most_micro_batches, shares, split_rows

STILL = {"dropout": 0.0}  # what is drawn at random differs with the pieces


def rows(assembly, count):
    windows, _ = training_windows(assembly.log, assembly.train_mask, max_events=16, min_events=2)
    return sorted(rows_of(assembly, windows[:count]), key=len)


def test_the_process_with_the_most_pieces_need_not_have_the_most_rows():
    """Seven rows on two processes, in three pieces: four rows make two and two, three make one each."""
    seven = list(range(7))
    assert [len(split_rows(seven, Processes(rank, 2), 3)) for rank in (0, 1)] == [2, 3]
    assert most_micro_batches(seven, Processes(0, 2), 3) == 3
    assert most_micro_batches(seven[:1], Processes(1, 2), 3) == 1 and most_micro_batches(seven, Processes(), 9) == 7


@pytest.mark.parametrize("pieces", [1, 2, 3, 9])
@pytest.mark.parametrize("processes", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_every_row_is_in_one_piece_of_one_process(pieces, processes, count):
    found = [split_rows(list(range(count)), Processes(rank, processes), pieces) for rank in range(processes)]
    assert sorted(row for parts in found for part in parts for row in part) == list(range(count))
    assert all(len(part) > 0 for parts in found for part in parts) and all(len(parts) <= pieces for parts in found)
    sizes = [sum(map(len, parts)) for parts in found]
    assert max(sizes) - min(sizes) <= 1


def test_targets_are_counted_as_they_are_read(build, log):
    """Some labels are missing, and only part of the events are targets."""
    import dataclasses

    frame = {place: None for place in range(0, len(log), 3)}
    holes = with_values(log, rating={place: 3.0 for place in frame})
    assembly = build(LIKE, RATING, NEXT, data=holes)
    supervise = dict(assembly.builder.data.supervise(list(assembly.recipe.tasks)))
    slot, labels = supervise["rating"]
    supervise["rating"] = (slot, np.where(np.arange(len(labels)) % 3 == 0, np.nan, labels))
    some = [dataclasses.replace(row, targets=row.targets & (np.arange(len(row.targets)) % 2 == 0)) for row in rows(assembly, 9)]
    read = collate(some, supervise).reads
    counted = count_targets(some, supervise)
    assert counted == {name: len(reads.labels) for name, reads in read.items()}
    assert counted["rating"] < counted["like"] == counted["next_item"]
    assert count_targets([], supervise) == {"like": 0, "rating": 0, "next_item": 0}


def test_shares_add_up():
    whole = {"a": 10, "b": 0}
    assert shares({"a": 3, "b": 0}, whole) == {"a": 0.3, "b": 0.0} and shares({"a": 0, "b": 0}, whole) == {"a": 0.0, "b": 0.0}


def gradients(loop, some):
    """What a step gives, before the optimizer takes it."""
    found = {}

    def clip():
        found.update({name: value.grad.clone() for name, value in loop.parameters.items()})
        return torch.zeros(())

    loop.optimization.clip, loop.optimization.step = clip, lambda rate: None
    result = loop.step(some, 0.5)
    loop.optimization.zero_grad()
    return found, result.loss, result.tokens, result.targets


@pytest.mark.parametrize("accumulate", [2, 3, 50])
def test_accumulated_gradients_are_the_whole_batchs(build, tmp_path, accumulate):
    """A rare label, so that pieces have different shares of each task."""
    results = []
    for pieces in (1, accumulate):
        assembly = build({**LIKE, "weight": 0.5}, RATING, train={"accumulate": pieces}, encoder=STILL)
        stir(assembly)
        loop = Loop(assembly, tmp_path / str(pieces), Reporter.silent())
        slot, labels = loop.labels["like"]
        loop.labels["like"] = (slot, np.where(np.arange(len(labels)) % 7 < 5, np.nan, labels))
        results.append(gradients(loop, rows(assembly, 7)))
        loop.close()
    (whole, *told), (summed, *told_again) = results
    assert told[1:] == told_again[1:] and told[0] == pytest.approx(told_again[0], rel=1e-5)
    for name, value in whole.items():
        assert torch.allclose(value, summed[name], rtol=1e-3, atol=1e-6), name
        assert value.abs().max() > 0 or "learned" in name, name


def test_a_run_in_pieces_gives_the_same_weights(build, tmp_path):
    """Without dropout, within what float sums in another order give."""
    found = []
    for pieces in (1, 3):
        assembly = build(LIKE, train={"accumulate": pieces, "epochs": 1, "checkpoint_activations": pieces == 3}, encoder=STILL)
        fitted = fit(assembly, tmp_path / str(pieces))
        found.append((fitted.state, {name: value.detach().clone() for name, value in assembly.model.trainable().items()}))
    (one, weights), (three, again) = found
    assert (one.step, one.tokens, one.targets) == (three.step, three.tokens, three.targets)
    for name, value in weights.items():
        assert torch.allclose(value, again[name], atol=2e-3), name
    assert one.best_value == pytest.approx(three.best_value, abs=2e-3)
