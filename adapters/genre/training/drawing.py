"""Items that losses of generate heads compare: drawn before a step, and laid out behind its rows.

Owns: which targets of a row they are drawn for, passes that draw from the policy, the room that they take in a step. Ignores:
formulas, where pairs come from (`genre.training.preferences`).

    for batch in step_batches(model, rows, labels, batch_tokens):      # to learn from, whatever the losses of the tasks
        ...

A target's row is shared, so an item costs the tokens of its codes, but for the last (`genre.data.sequences.code_branches`). Which
items they are is known at the step alone: steps are planned for branches of the mean length, and split where theirs are longer.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Rows

import numpy as np
import torch

from genre.data.dataset import Slot
from genre.data.sequences.batches import Batch, collate, plan_batches
from genre.data.sequences.code_branches import CodeBranches, up_to, with_prefixes
from genre.data.sequences.layout import Sequence
from genre.errors import RecipeError
from genre.evaluation.labels import known_labels
from genre.modules.base.planned import PlannedBase
from genre.modules.recommender import Recommender
from genre.modules.reference import Groups, Preferences, evaluating
from genre.modules.trie_draws import TrieDraws
from genre.training.generating import prefix_logits

Labels = Mapping[str, tuple[Slot, np.ndarray]]


def step_batches(model: Recommender, rows: Rows[Sequence], labels: Labels, batch_tokens: int) -> Iterator[Batch]:
    """Draw what the tasks' losses compare, and collate the rows with it, on the model's device.

    One batch of all rows, but where more is drawn than was planned for, several.

    Args:
        model: In training mode; its low-rank layers are on the base.
        rows: At least one training row.
        labels: For each task its slot and labels.
        batch_tokens: Padded tokens of a pass, of those too that draw from the policy.
    """
    rows = with_drawn_items(model, rows, labels, batch_tokens)
    lengths = np.array([len(row) for row in rows])
    parts = plan_batches(lengths, batch_tokens) if _comparing(model) else [np.arange(len(rows))]
    for part in parts:
        yield collate([rows[index] for index in sorted(part.tolist())], labels).to(model.base.device)


def with_drawn_items(model: Recommender, rows: Rows[Sequence], labels: Labels, batch_tokens: int) -> Rows[Sequence]:
    """Rows with what was drawn for each target of tasks that compare generated items, after the target's own; arguments as above.

    Draws come from torch's random numbers on the CPU, so that a resumed run draws what an uninterrupted one does.
    """
    for name, relative in _comparing(model).items():
        assert model.trie is not None
        at = [_targets_of(row, labels[name][1]) for row in rows]
        events = np.concatenate([row.events[own] for row, own in zip(rows, at, strict=True)])
        items = labels[name][1][events]
        if relative.from_policy:
            after = [row.next_reads[own].astype(np.int64) for row, own in zip(rows, at, strict=True)]
            drawn = _draw(model, name, rows, after, relative.count, batch_tokens)
            drawn = _once(drawn) if isinstance(relative, Preferences) else drawn
        else:
            assert isinstance(relative, Preferences)
            drawn = relative.draw(torch.from_numpy(events), torch.from_numpy(items)).numpy()
        drawn = np.where(model.trie.node_of(0, drawn) < 0, -1, drawn)  # a log's pairs may have cold items
        table = np.split(np.concatenate([items[:, None], drawn], axis=1), np.cumsum([len(own) for own in at])[:-1])
        branches = CodeBranches(model.trie)
        rows = [branches.compare(row, name, own, part) for row, own, part in zip(rows, at, table, strict=True)]
    return rows


def planned_rows(
    model: Recommender, rows: list[Sequence], labels: Labels, batch_tokens: int
) -> tuple[list[Sequence], np.ndarray]:
    """Rows of an epoch, and the tokens of each with what is drawn for it, as its items usually are.

    A row with more than fit into a step becomes several, each with some of its targets.

    Args:
        model: Its tasks say what is drawn.
        rows: Training rows.
        labels: For each task its slot and labels.
        batch_tokens: Tokens of a step.

    Raises:
        RecipeError: What is drawn for one target does not fit.
    """
    comparing = _comparing(model)
    if not comparing:
        return rows, np.array([len(row) for row in rows], dtype=np.int64)
    assert model.trie is not None
    branches, found, lengths = CodeBranches(model.trie), [], []
    for row in rows:
        added = np.zeros(len(row.events), dtype=np.int64)
        for name, relative in comparing.items():
            own = _targets_of(row, labels[name][1])
            added[own] += np.ceil(relative.counts(row.events[own]) * model.trie.branch_length).astype(np.int64)
        assert row.code_lengths is not None
        added += row.code_lengths
        if row.prefix_length + added.max(initial=0) > batch_tokens:
            raise _too_long(comparing, row.prefix_length + int(added.max()), batch_tokens)
        parts = _parts(added, batch_tokens - row.prefix_length)
        for number in range(parts.max(initial=0) + 1):
            part = row
            if parts.any():
                bare = up_to(row, row.prefix_length - 1)
                part = branches.extend(dataclasses.replace(bare, targets=row.targets & (parts == number)))
            found.append(part)
            lengths.append(row.prefix_length + int(added[parts == number].sum()))
    return found, np.array(lengths, dtype=np.int64)


def _comparing(model: Recommender) -> dict[str, Preferences | Groups]:
    """The losses that compare generated items, by task."""
    return {name: relative for name, relative in model.relative.items() if model.head(name).generates}


def _targets_of(row: Sequence, labels: np.ndarray) -> np.ndarray:
    """(k,) events of a row that a task learns from."""
    own = row.targets & (row.events >= 0)
    return np.flatnonzero(own & known_labels(labels[row.events]))


def _once(items: np.ndarray) -> np.ndarray:
    """(n, m) items with -1 in the place of those that are in their row already, as if they were drawn without replacement."""
    order = np.argsort(items, axis=1, kind="stable")
    ordered = np.take_along_axis(items, order, axis=1)
    again = np.zeros(items.shape, dtype=bool)
    np.put_along_axis(again, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
    return np.where(again, -1, items)


def _parts(added: np.ndarray, room: int) -> np.ndarray:
    """(E,) the number of the part that each event goes to, in order, so that none adds more tokens than there is room for."""
    found, taken, part = np.zeros(len(added), dtype=np.int64), 0, 0
    for event, own in enumerate(added.tolist()):
        if taken + own > room and own:
            part, taken = part + 1, 0
        taken += own
        found[event] = part
    return found


def _too_long(comparing: Mapping[str, Preferences | Groups], tokens: int, batch_tokens: int) -> RecipeError:
    name, relative = max(comparing.items(), key=lambda pair: pair[1].count)
    key = "preference.negatives" if isinstance(relative, Preferences) else "group.size"
    what, got = f"a target of task {name!r} does not fit into a step with what is drawn for it", f"{tokens:,} tokens with its row"
    todo = f"lower {key} ({relative.count:,}) or data.max_events, or raise train.batch_tokens"
    return RecipeError(what, got=got, expected=f"at most train.batch_tokens {batch_tokens:,}", todo=todo)


def _draw(
    model: Recommender, name: str, rows: Rows[Sequence], after: Rows[np.ndarray], count: int, batch_tokens: int
) -> np.ndarray:
    """(n, count) item codes from the policy as it is now, without dropout, for the targets that follow some tokens of each row.

    One pass of the base a level reads all prefixes of a row behind it. A base that is only planned draws evenly.
    """
    assert model.trie is not None
    trie, histories, every = model.trie, [up_to(row, row.prefix_length - 1) for row in rows], np.concatenate(after)
    ends = np.cumsum([len(own) for own in after])
    draws = TrieDraws(trie, len(every), count)
    with torch.no_grad(), evaluating(model):
        while (asked := draws.prefixes()) is not None:
            targets, codes = asked
            level = codes.shape[1]
            if isinstance(model.base, PlannedBase):
                draws.advance(np.zeros((len(codes), trie.sizes[level]), dtype=np.float32))
                continue
            cuts = np.searchsorted(targets, ends)[:-1]
            prefixes = zip(histories, np.split(every[targets], cuts), np.split(codes + trie.offsets[:level], cuts), strict=True)
            parts = [(0, level, with_prefixes(*own)) for own in prefixes if len(own[1])]
            draws.advance(np.concatenate([logits for _, logits in prefix_logits(model, name, parts, batch_tokens)]))
    return draws.items()
