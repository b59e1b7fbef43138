"""A student of a next-item version: EASE fitted on its lists, against it on the same test targets, with what each costs.

    python benchmarks/student.py --registry build/demo/registry --json build/bench/student.json [--ref next_item] [--data ml-100k]
    python benchmarks/student.py --registry build/demo/registry --only cost

The teacher's lists (`genre registry export --to lists --before valid --top 100`) come from histories that end before what
validates and tests. With X (users, items) those histories and Y the lists' soft labels, two students without any network:

    lists      EASE of X + a Y: the lists count as further events of a weight a
    map        B = (X'X + lambda I)^-1 X'Y, a linear map from histories to lists

Beside them EASE of X alone, which never saw the teacher. Ridge, weight, temperature and fading are chosen on validation; the test
part is read once. Differences are student less teacher, paired by user. Times are CPU seconds of this process.
"""

import argparse
import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

import genre
from genre.data.splits import TEST, SplitConfig
from genre.engine import Engine, Request
from genre.evaluation.ease import validation_ndcg, validation_targets
from genre.evaluation.item_models import FadedModel
from genre.evaluation.ranking import rank_in_blocks
from genre.evaluation.targets import targets
from genre.files import write_json
from genre.jobs.compare import RESAMPLES, paired_difference
from genre.jobs.export.histories import cut_log
from genre.jobs.export.lists import soft_labels
from genre.jobs.loading import load_base, open_log
from genre.jobs.predictions import from_version
from genre.progress import Reporter

RIDGES = (100.0, 300.0, 1000.0)
WEIGHTS = (3.0, 10.0, 30.0)
TEMPERATURES = (1.0, 3.0)
TIMED = 200
METRICS = ("ndcg@10", "hr@10", "mrr@10")


def ease_of(matrix: Any, ridge: float) -> np.ndarray:
    """EASE's weights (N, N) of a matrix of users and items, which need not be binary."""
    inverse = np.linalg.inv((matrix.T @ matrix).toarray().astype(np.float64) + ridge * np.eye(matrix.shape[1]))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return weights.astype(np.float32)


def map_of(events: Any, labels: Any, ridge: float) -> np.ndarray:
    """The linear map (N, N) from histories to labels, by ridge regression."""
    gram = (events.T @ events).toarray().astype(np.float64) + ridge * np.eye(events.shape[1])
    return np.linalg.solve(gram, (events.T @ labels).toarray()).astype(np.float32)


def events_of(log: Any) -> Any:
    """X of ones, CSR (users, items)."""
    events = sp.csr_matrix((np.ones(len(log)), (log.user_codes, log.item_codes)), shape=(len(log.user_ids), log.catalogue.size))
    events.data[:] = 1
    return events


def labels_of(log: Any, lists: Any, temperature: float) -> Any:
    """Y of soft labels, CSR (users, items)."""
    users = lists["user_id"].replace_strict({user: row for row, user in enumerate(log.user_ids)}).to_numpy()
    labels = lists.select(soft_labels(temperature)).to_series().to_numpy()
    cells = users, log.catalogue.codes(lists["item_id"].to_list())
    return sp.csr_matrix((labels, cells), shape=(len(log.user_ids), log.catalogue.size))


def teacher_cost(registry: Any, ref: str, base: Any, log: Any) -> float:
    """CPU milliseconds of the teacher's list of one user, over `TIMED` users in one call."""
    with Engine(base, registry, data=log) as engine:
        engine.load(ref)
        engine.score([Request(ref, user_id=log.user_ids[-1], k=10)])  # the catalogue's vectors are made by now
        begun = time.process_time()
        engine.score([Request(ref, user_id=user, k=10) for user in log.user_ids[:TIMED]])
        return (time.process_time() - begun) / TIMED * 1000


def fit(log: Any, cut: Any, split: Any, lists: Any) -> dict[str, tuple[Any, dict[str, Any], float]]:
    """Each student with the settings that validation likes best, and the seconds of one fit."""
    found: dict[str, tuple[float, Any, dict[str, Any], float]] = {}
    valid = validation_targets(log, split)
    events = events_of(cut)

    def offer(name: str, make: Any, *matrices: Any, ridge: float, **settings: float) -> None:
        begun = time.process_time()
        weights = make(*matrices, ridge)
        seconds = time.process_time() - begun
        model = FadedModel(log, split, lambda history: history @ weights)
        quality = validation_ndcg(log, split, valid, model.blocks(valid))
        if name not in found or quality > found[name][0]:
            chosen = {"ridge": ridge} | settings | {"fade": model.fade, "valid ndcg@10": round(quality, 4)}
            found[name] = quality, model, chosen, seconds

    for ridge in RIDGES:
        offer("ease without a teacher", ease_of, events, ridge=ridge)
    for temperature in TEMPERATURES:
        labels = labels_of(cut, lists, temperature)
        for ridge, weight in itertools.product(RIDGES, WEIGHTS):
            offer("lists", ease_of, events + weight * labels, ridge=ridge, weight=weight, temperature=temperature)
        for ridge in RIDGES:
            offer("map", map_of, events, labels, ridge=ridge, temperature=temperature)
    return {name: entry[1:] for name, entry in found.items()}


def main() -> None:
    """Run all of it and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--registry", default="build/demo/registry")
    parser.add_argument("--ref", default="next_item")
    parser.add_argument("--data", default="ml-100k")
    parser.add_argument("--top", type=int, default=100)
    parser.add_argument("--only", choices=["cost"])
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    reporter = Reporter.for_terminal()
    log, registry = open_log(asked.data), genre.Registry(asked.registry)
    version = registry.resolve(asked.ref)
    base, (task,) = load_base(version.manifest), (str(row["name"]) for row in version.manifest.tasks)
    teacher_ms = teacher_cost(registry, version.ref, base, log)
    print(f"teacher {version.ref}: {teacher_ms:.1f} CPU ms per user")
    if asked.only == "cost":
        return
    split = log.split(SplitConfig.model_validate((version.manifest.data.split or {})["split"]))
    lists_file = Path(asked.registry).parent / f"lists-{version.version}-{asked.top}.parquet"
    lists_file.unlink(missing_ok=True)
    begun = time.process_time()
    lists = genre.export.lists(
        registry, version.ref, lists_file, log, base=base, top=asked.top, before="valid", reporter=reporter
    )
    made_lists = time.process_time() - begun
    teacher = from_version(registry, version.ref, log, base, part="test")[task]
    found = targets(log, split, TEST)
    assert np.array_equal(found.event, teacher.targets.event)
    rows = []
    for name, (model, settings, seconds) in fit(log, cut_log(log, version.manifest, task, "valid"), split, lists).items():
        begun = time.process_time()
        ranks = rank_in_blocks(log, split, found, model.blocks(found)).ranks
        row: dict[str, Any] = {"student": name, "settings": settings, "fit_seconds": round(seconds, 2)}
        row["ms_per_user"] = round((time.process_time() - begun) / len(found) * 1000, 2)
        row["metrics"] = {
            each: vars(paired_difference(each, found, ranks, teacher.scores, resamples=RESAMPLES)) for each in METRICS
        }
        rows.append(row)
    result = {
        "teacher": version.ref,
        "training_seconds": version.manifest.cost.seconds,
        "lists_seconds": round(made_lists, 1),
        "teacher_ms_per_user": round(teacher_ms, 2),
        "students": rows,
    }
    print(f"lists in {made_lists:.0f} CPU s")
    for row in rows:
        print(f"{row['student']} {row['settings']}: fit {row['fit_seconds']} CPU s, {row['ms_per_user']} CPU ms per user")
        for each, one in row["metrics"].items():
            low, high = one["interval"]
            print(
                f"  {each} {one['a']:.4f}, teacher {one['b']:.4f}, difference {one['difference']:+.4f} [{low:+.4f}, {high:+.4f}]"
            )
    if asked.json is not None:
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(asked.json, result)


if __name__ == "__main__":
    main()
