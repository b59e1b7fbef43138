"""`/v1/recommend`'s lists as they are shown, and `/v1/feedback`: what came of them.

Owns: the draw of a list, its impression, rewards row by row. Ignores: policies, the file.
"""

import asyncio
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from fastapi import Request as Http
from fastapi import Response as Reply
from pydantic import ValidationError

from genre.engine import Request, Scored
from genre.errors import DiskError, RequestError
from genre.serving.batching import Answer
from genre.serving.exploring import Explorer
from genre.serving.http.bodies import body_of, read_body, reply
from genre.serving.http.schema import FeedbackBody, RewardRow
from genre.serving.problems import Problem, shorten
from genre.serving.served import Impression, Outcome, Reward
from genre.serving.service import Service
from genre.validation import refusal

BEST = "best"
"""The policy of a service that does not explore."""
_ERRORS: dict[Outcome, str] = {
    "unknown": "no such impression: got {impression!r}; expected the impression_id of an answer, not older than the log keeps",
    "not shown": "the item was not in this impression: got {item!r}; expected one of its results",
    "different": "another reward is known: got {reward:g}; expected the reward that was sent first, which stays",
}


def widened(service: Service, request: Request) -> Request:
    """The request with a k of the pool that a list is drawn from, where its list is drawn."""
    explorer = _explorer(service, request)
    return request if explorer is None else replace(request, k=max(request.k or 0, explorer.policy.pool))


def _explorer(service: Service, request: Request) -> Explorer | None:
    """What draws the request's list; None if nothing does."""
    best = request.k is None or request.texts is not None or bool(request.diversity)
    return None if best else service.explorer


def draw(service: Service, asked: Request, answer: Answer) -> tuple[Answer, Impression | None]:
    """The answer with the list that is shown, and its impression; None for a row without one.

    An item that several candidates name is shown once, at its best score: a reward names an item, not a place.
    """
    found = answer.response
    every = [item for item in found.results if isinstance(item, Scored)]
    if found.error is not None or not every or found.digest is None:
        return answer, None
    first = {item.item_id: item for item in reversed(every)}
    items = [item for item in every if first[item.item_id] is item]
    explorer, policy, propensities = _explorer(service, asked), BEST, np.ones(len(items))
    if explorer is not None:
        policy = str(explorer.policy)
        chosen, propensities = explorer.draw(np.array([item.score for item in items]), asked.k or 0)
        items = [items[index] for index in chosen]
    answer = replace(answer, response=replace(found, results=tuple(items)))
    scores = [item.score for item in items]
    shown, number = [item.item_id for item in items], uuid.uuid4().hex
    return answer, Impression(number, found.adapter, found.digest, asked.user_id, policy, shown, scores, propensities.tolist())


def describe(service: Service, row: dict[str, Any], impression: Impression | None, *, kept: bool) -> dict[str, Any]:
    """The JSON object of an answer, with the probabilities of its impression, and its id if that is kept."""
    if impression is None:
        return row
    named = {"impression_id": impression.impression} if kept else {}
    if service.explorer is None:
        return row | named
    drawn = zip(row["results"], impression.propensities, strict=True)
    return row | named | {"policy": impression.policy, "results": [item | {"propensity": p} for item, p in drawn]}


async def keep(service: Service, impressions: Sequence[Impression | None]) -> bool:
    """Write impressions; False if they are not in a served log, and their lists are shown all the same."""
    rows = [row for row in impressions if row is not None]
    if service.served is None or not rows:
        return False
    try:
        await asyncio.wrap_future(service.served.show(rows))
    except DiskError as error:
        service.log.write("impressions not written", level="error", error=str(error))
        service.metrics.impressions.labels("lost").inc(len(rows))
        return False
    service.metrics.impressions.labels("recorded").inc(len(rows))
    return True


async def feedback_call(service: Service, http: Http) -> Reply:
    """Answer `/v1/feedback`; what is acknowledged is on the disk.

    Raises:
        Problem: The call as a whole cannot be read, or nothing can be written.
    """
    rows: list[Any] = read_body(await body_of(http), FeedbackBody).feedback
    assert service.served is not None
    if len(rows) > (most := service.settings.call_rows):
        raise Problem(422, "bad_body", RequestError("feedback has a wrong length", got=len(rows), expected=f"at most {most}"))
    read = [_read(row) for row in rows]
    rewards = [row for row in read if isinstance(row, Reward)]
    try:
        known = await asyncio.wrap_future(service.served.reward(rewards))
    except DiskError as error:
        raise Problem(503, "not_written", error, {"Retry-After": "10"}) from None
    outcomes, found = [], iter(known)
    for row in read:
        outcome = next(found) if isinstance(row, Reward) else "refused"
        service.metrics.feedback.labels(outcome).inc()
        if isinstance(row, RequestError):
            outcomes.append({"error": shorten(str(row))})
        elif outcome in _ERRORS:
            outcomes.append({"error": shorten(_ERRORS[outcome].format(**vars(row)))})
        else:
            outcomes.append({"outcome": outcome})
    http.scope["genre"]["rows"] = len(rows)
    http.scope["genre"]["errors"] = sum("error" in outcome for outcome in outcomes)
    return reply({"outcomes": outcomes})


def _read(row: object) -> Reward | RequestError:
    try:
        read = RewardRow.model_validate(row)
    except ValidationError as error:
        return refusal(error, "a reward", list(RewardRow.model_fields), RequestError)
    return Reward(read.impression_id, read.item_id, read.reward)
