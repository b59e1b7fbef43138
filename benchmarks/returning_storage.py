"""The loss of a cache that stores states in fewer bits, on a trained adapter: `like@production` of a registry on ML-100K.

The last tenth of the log by time: each user's first such event is asked with the history before it, then the next with one event
more, and so on, so that states are stored and read again and again. The reference is the cache that stores them as computed.
"""

from pathlib import Path
from typing import Any

import numpy as np

import genre
from genre.engine import Engine, Request
from genre.engine.history_store import HistoryStore
from genre.evaluation.metrics.bootstrap import paired_bootstrap
from genre.jobs.loading import load_base
from genre.registry import Registry

USERS, TURNS = 100, 12
STORAGES = ("auto", "bfloat16", "int8")
REF = "like@production"


def questions(log: genre.Interactions) -> list[list[tuple[int, Request, bool]]]:
    """For each turn the users' numbers, their requests and whether they liked the item."""
    frame = log.frame.select("user_id", "item_id", "rating", "timestamp").sort("timestamp", maintain_order=True)
    first = int(0.9 * len(frame))
    known: dict[str, list[dict[str, Any]]] = {}
    asked: dict[str, list[tuple[int, Request, bool]]] = {}
    for place, (user, item, rating, _) in enumerate(frame.iter_rows()):
        history = known.setdefault(str(user), [])
        if place >= first and len(history) > 0 and (user in asked or len(asked) < USERS) and len(asked.get(user, ())) < TURNS:
            request = Request(REF, user_id=str(user), history=list(history), candidates=[str(item)])
            asked.setdefault(user, []).append((len(asked), request, rating > 3))
        history.append({"item_id": str(item), "rating": float(rating)})
    numbers = {user: number for number, user in enumerate(asked)}
    turns = [[own[turn] for own in asked.values() if len(own) > turn] for turn in range(TURNS)]
    return [[(numbers[request.user_id or ""], request, label) for _, request, label in turn] for turn in turns if turn]


def storage_loss(log: genre.Interactions, registry: Path) -> dict[str, Any]:
    """AUC and scores with each storage against those with states as they were computed."""
    store = Registry(registry)
    base = load_base(store.resolve(REF).manifest)
    turns = questions(log)
    users = np.array([user for turn in turns for user, _, _ in turn])
    labels = np.array([label for turn in turns for _, _, label in turn], dtype=np.float64)
    scores, sizes = {}, {}
    for storage in STORAGES:
        kept = HistoryStore(2**32, storage=storage)
        with Engine(base, store, history_cache=kept) as engine:
            answers = [answer for turn in turns for answer in engine.score([request for _, request, _ in turn])]
            if wrong := [answer.error for answer in answers if answer.error]:
                raise RuntimeError(wrong[0])
            scores[storage] = np.array([answer.results[0].score for answer in answers])
            sizes[storage] = kept.counters.device_bytes
    found: dict[str, Any] = {"targets": len(labels), "users": len(np.unique(users))}
    for storage in STORAGES[1:]:
        off = np.abs(scores[storage] - scores["auto"])
        figure = paired_bootstrap("auc", users, labels, scores["auto"], scores[storage])
        found[storage] = {
            "bytes": sizes[storage] / sizes["auto"],
            "auc_lost": figure.value,
            "interval": [figure.low, figure.high],
            "probability_off": {"mean": float(off.mean()), "p99": float(np.quantile(off, 0.99)), "max": float(off.max())},
        }
    return found
