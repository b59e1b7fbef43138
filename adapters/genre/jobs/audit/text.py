"""The text attack: a target's title rewritten, by suffixes and by greedy choice of words; nothing is trained.

Owns: which titles are tried. Ignores: lists and scores (`lineup`).

    "Heat"  →  "Heat (bestseller)"                      a suffix
            →  "Heat star wars return jedi empire"      at most five words, each the one that helps most

Words are chosen on the lists of some users, and measured on those of others.
"""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from genre.jobs.audit.lineup import Lineup, lineup_of, read_column
from genre.jobs.audit.report import Rewritten, RewrittenTarget, SampledTarget, Standing, TextSection
from genre.jobs.audit.subject import Subject
from genre.jobs.loading import build_model
from genre.progress import Reporter

STEPS = 5
"""Words that are put behind a title at most."""
POPULAR = 200
"""Items with the most events, whose titles give the words."""


class TextAttack:
    """The check `text`."""

    def foresee(self, subject: Subject) -> str:
        """The number of titles that are tried."""
        options = subject.options
        tried = len(options.suffixes) + 1 + STEPS * options.words
        users = f"{len(subject.searched)} users while words are chosen, {len(subject.measured)} others measured"
        return f"text attack: up to {tried:,} titles for each of {len(subject.targets)} targets; {users}"

    def run(self, subject: Subject, reporter: Reporter) -> TextSection:
        """Try the titles."""
        options, targets = subject.options, subject.targets
        model, builder = build_model(subject.loaded, subject.log, subject.base)
        try:
            item = subject.loaded.layout.item
            with reporter.phase("making the lists"):
                measured, searched = (
                    lineup_of(model, builder, subject.task, users, targets, seed=options.seed)
                    for users in (subject.measured, subject.searched)
                )
            column = read_column(measured.model, measured.builder)
            if column is None:
                reporter.line("text attack: the version reads no text of items, so a title changes nothing")
                nothing = dict.fromkeys(("before", "suffixes", "greedy"))
                return TextSection(item=item, column=None, lists=measured.lists, words=[], targets=[], **nothing)
            suffixes = [*options.suffixes, *_end_token(subject)]
            words = popular_words(subject, column)[: options.words]
            found = []
            with reporter.bar("text attack", len(targets) * (STEPS + 1)) as bar:
                for target, sampled in zip(targets, subject.sampled_targets, strict=True):
                    title = str(subject.log.catalogue.frame[column][target] or "")
                    choice = _Choice(searched, target, column, title)
                    for _ in range(STEPS):
                        choice.step(words)
                        bar.advance(1)
                    found.append(_rewritten(measured, target, sampled, column, title, suffixes, choice.added))
                    bar.advance(1)
        finally:
            model.release()
        return TextSection(
            item=item,
            column=column,
            lists=measured.lists,
            words=words,
            targets=found,
            before=mean([each.before for each in found]),
            suffixes=mean([best(each.suffixes).standing for each in found]),
            greedy=mean([each.greedy.standing for each in found]),
        )


class _Choice:
    """Words put behind a title one by one, each that with the highest mean score on some users' lists, while one helps."""

    def __init__(self, lineup: Lineup, target: int, column: str, title: str) -> None:
        self.lineup, self.target, self.column = lineup, target, column
        self.title, self.ended = title, False
        self.score = self._scores([title])[0]
        self.added: list[str] = []

    def step(self, words: Sequence[str]) -> None:
        """Add the best word, if one is better than none."""
        if self.ended or not words:
            return
        scores = self._scores([f"{self.title} {word}".strip() for word in words])
        first = int(np.argmax(scores))
        if scores[first] <= self.score:
            self.ended = True
            return
        self.title, self.score = f"{self.title} {words[first]}".strip(), scores[first]
        self.added.append(words[first])

    def _scores(self, titles: Sequence[str]) -> list[float]:
        return [each.score for each in self.lineup.place(self.target, self.column, titles)]


def _rewritten(
    lineup: Lineup, target: int, sampled: SampledTarget, column: str, title: str, suffixes: Sequence[str], added: Sequence[str]
) -> RewrittenTarget:
    endings = ["", *suffixes, " ".join(added)]
    before, *others = lineup.place(target, column, [f"{title} {ending}".strip() for ending in endings])
    tried = [Rewritten(added=ending, standing=each) for ending, each in zip(endings[1:], others, strict=True)]
    return RewrittenTarget(**sampled.model_dump(), before=before, suffixes=tried[:-1], greedy=tried[-1])


def popular_words(subject: Subject, column: str) -> list[str]:
    """The words of the titles of popular items, by the number of events behind them, each in lower case."""
    log = subject.log
    counts = np.bincount(log.item_codes, minlength=log.catalogue.size)
    found: Counter[str] = Counter()
    values = log.catalogue.frame[column]
    for code in np.argsort(-counts, kind="stable")[:POPULAR].tolist():
        for word in set(re.findall(r"[^\W\d_]{2,}", (values[code] or "").lower())):
            found[word] += int(counts[code])
    return [word for word, _ in sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))]


def _end_token(subject: Subject) -> list[str]:
    """The token that ends a text for the base, written out."""
    token = subject.base.tokenizer.eos_token
    return [] if token is None else [str(token)]


def best(tried: Sequence[Rewritten]) -> Rewritten:
    """The rewriting with the highest exposure, by score where several have it."""
    return max(tried, key=lambda each: (each.standing.exposure, each.standing.score))


def mean(standings: Sequence[Standing]) -> Standing:
    """The mean over targets, each counted alike."""
    exposure, score = (float(np.mean([getattr(each, name) for each in standings])) for name in ("exposure", "score"))
    return Standing(exposure=exposure, score=score, users=sum(each.users for each in standings))
