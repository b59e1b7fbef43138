"""Extraction by prefix: given the first half of a history as text, how much of the rest does a text adapter's base write?

Owns: which halves, the greedy continuation, what counts as given back. Ignores: chats; a prompt is laid out as in training.

    prompt         User of age 24:⏎Heat: yes⏎Casino: yes⏎
    continuation   Fargo: yes⏎Toy Story: no⏎ …                  is compared with what the user did have

The same users are asked of the base alone, of the version, and of an adapter that was trained without them: what the last two
differ in is what was learnt of these users, and not what everybody's histories say.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from genre.data.interactions import Interactions
from genre.data.sequences.layout import Layout
from genre.data.sequences.rows import RowBuilder
from genre.data.sequences.windows import training_windows
from genre.evaluation.metrics.bootstrap import LEVEL, RESAMPLES, user_draws
from genre.jobs.audit.report import ExtractionSection, GivenBack
from genre.jobs.audit.retraining import Turns, audited_recipe, foresee_trainings, retrained
from genre.jobs.audit.subject import Subject
from genre.jobs.loading import build_model
from genre.modules.base.base import Base
from genre.progress import Reporter
from genre.training.assembly import training_split

MOST_USERS = 50
NEW_TOKENS = 64
"""Tokens of a continuation; the true one is cut to as many."""
MIN_EVENTS = 4


@dataclass(frozen=True)
class _Halves:
    """A history in two: the tokens of the first half, those that follow, and the texts of the later items."""

    prompt: np.ndarray
    rest: np.ndarray
    later: list[str]


@dataclass(frozen=True)
class _Told:
    """What one model gives back of U users: (U,) shares of events, tokens and bits per token."""

    events: np.ndarray
    tokens: np.ndarray
    bits: np.ndarray

    def mean(self) -> GivenBack:
        return GivenBack(events=float(self.events.mean()), tokens=float(self.tokens.mean()), bits=float(self.bits.mean()))


class PrefixExtraction:
    """The check `extraction`."""

    def foresee(self, subject: Subject) -> str:
        """The number of users and the time of the training without them; or why there is nothing to extract."""
        why_not = inapplicable(subject.loaded.layout, subject.log)
        if why_not:
            return f"extraction: does not apply, {why_not}"
        audited_recipe(subject, "extraction")
        users = min(MOST_USERS, len(subject.measured))
        return f"extraction: {users} histories continued for {NEW_TOKENS} tokens three times, {foresee_trainings(subject, 1)}"

    def run(self, subject: Subject, reporter: Reporter) -> ExtractionSection:
        """Ask the three models."""
        why_not = inapplicable(subject.loaded.layout, subject.log)
        halves: list[_Halves] = []
        if not why_not:
            recipe, log = audited_recipe(subject, "extraction"), subject.log
            users = np.array([log.user_code(user) for user in subject.measured[:MOST_USERS]])
            train = training_split(recipe, log)[1] & np.isin(log.user_codes, users)
            halves = list(_cut(RowBuilder(log, subject.loaded.layout), train, recipe.data.max_events))
            why_not = "" if halves else f"no measured user has {MIN_EVENTS} training events"
        if why_not:
            reporter.line(f"extraction: {why_not}")
            nothing = dict.fromkeys(("base", "version", "without", "difference"))
            return ExtractionSection(applies=False, why_not=why_not, users=0, new_tokens=NEW_TOKENS, **nothing)
        with reporter.bar("extraction: the base alone, the version", 2 * len(halves)) as bar:
            alone = _ask(subject.base, halves, bar.advance)
            model, _ = build_model(subject.loaded, log, subject.base)
            try:
                own = _ask(subject.base, halves, bar.advance)
            finally:
                model.release()
        Turns(1, reporter).begin(f"without {len(users)} users whose histories are continued")
        with retrained(subject, recipe, log.select(~np.isin(log.user_codes, users)), reporter):
            without = _ask(subject.base, halves, lambda _: None)
        return ExtractionSection(
            applies=True,
            why_not="",
            users=len(halves),
            new_tokens=NEW_TOKENS,
            base=alone.mean(),
            version=own.mean(),
            without=without.mean(),
            difference=_difference(own.bits - without.bits, subject.options.seed),
        )


def inapplicable(layout: Layout, log: Interactions) -> str:
    """The reason why rows of a log cannot be continued as text; empty if they can."""
    if layout.item != "text":
        return f"items are soft tokens (sequence.item {layout.item}), which no base can write"
    if layout.soft_feedback and layout.feedback is not None:
        return "feedback is a soft token, which no base can write"
    if log.impressions is not None:
        return "items that were shown together are laid out side by side, not as one text"
    return ""


def _cut(builder: RowBuilder, train: np.ndarray, max_events: int) -> Iterator[_Halves]:
    """The first window of each user's training events, cut in the middle."""
    limits, rule = {"max_events": max_events, "min_events": MIN_EVENTS}, builder.layout.window
    windows, _ = training_windows(builder.data, train, **limits, rule=rule)
    seen: set[int] = set()
    for window in windows:
        if window.user in seen or len(window.events) < MIN_EVENTS:
            continue
        seen.add(window.user)
        row = builder.row(window)
        middle = int(row.event_starts[len(window.events) // 2])
        texts = builder.texts
        assert texts is not None
        later = [texts[code] for code in row.item_codes[len(window.events) // 2 :]]
        yield _Halves(row.tokens[:middle], row.tokens[middle : row.prefix_length], later)


@torch.no_grad()
def _ask(base: Base, halves: list[_Halves], advance: Callable[[int], object]) -> _Told:
    """Continue every history with the base as it is now, and measure what comes."""
    events, tokens, bits = [], [], []
    for each in halves:
        written, nats = _continue(base, each)
        text = base.tokenizer.decode(written.tolist())
        events.append(np.mean([bool(title.strip()) and title.strip() in text for title in each.later]))
        shorter = min(len(written), len(each.rest))
        same = written[:shorter] == each.rest[:shorter]
        tokens.append(shorter if same.all() else int(np.argmin(same)))
        bits.append(nats / np.log(2))
        advance(1)
    return _Told(np.array(events), np.array(tokens, dtype=np.float64), np.array(bits))


def _continue(base: Base, halves: _Halves) -> tuple[np.ndarray, float]:
    """The greedy continuation of a prompt, (≤ NEW_TOKENS,), and the mean nats of the true one's tokens."""
    true = halves.rest[:NEW_TOKENS]
    row = torch.from_numpy(np.concatenate([halves.prompt, true]).astype(np.int64))[None].to(base.device)
    start = len(halves.prompt)
    logits = base.model(input_ids=row, use_cache=False).logits[0, start - 1 : -1].float()
    nats = torch.nn.functional.cross_entropy(logits, row[0, start:]).item()
    prompt, end = row[:, :start], base.tokenizer.eos_token_id
    options = {"do_sample": False, "num_beams": 1, "max_new_tokens": NEW_TOKENS, "pad_token_id": end}
    written = base.model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), **options)
    return written[0, start:].cpu().numpy(), nats


def _difference(values: np.ndarray, seed: int) -> tuple[float, float, float]:
    """A mean over users and its 95 % interval, users drawn again."""
    drawn = np.concatenate([weights @ values for weights in user_draws(len(values), RESAMPLES, seed, block=RESAMPLES)])
    low, high = np.quantile(drawn / len(values), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(values.mean()), float(low), float(high)
