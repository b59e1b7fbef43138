"""`/v1/score`, `/v1/recommend`, `/v1/explain`: from a call's rows to its answers.

Owns: one row after the other through parsing, the queue and back; the answer of a call as a whole. Ignores: how rows are
scored, limits before the body is there.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from fastapi import Request as Http
from fastapi import Response as Reply
from pydantic_core import to_json

from genre.engine import Request, Response, Scored
from genre.engine.explain import ATTEMPTS, ask, explain
from genre.engine.requests import ExplainRequest, refused
from genre.errors import GenreError, JobError, RequestError
from genre.serving.batching import Answer, Call, Routed
from genre.serving.deployments import Deployment
from genre.serving.http.bodies import JSON, body_of, caller_of, read_rows, reply
from genre.serving.http.feedback import describe, draw, keep, widened
from genre.serving.http.schema import ExplainBody, ScoreBody
from genre.serving.problems import Problem, shorten
from genre.serving.served import Impression
from genre.serving.service import Service

DEFAULT_K = 10
LARGE_BYTES = 2**16
LARGE_RESULTS = 2_000
LONGEST_GRADIENT = 2048
"""Estimated tokens of a row whose gradient is taken at most."""
_T = TypeVar("_T")
Row = dict[str, Any]


async def score_call(service: Service, http: Http, *, recommend: bool = False) -> Reply:
    """Answer `/v1/score`, or `/v1/recommend`, where k is ten unless given and results can be shown to people.

    Raises:
        Problem: The call as a whole cannot be answered.
    """
    body = await body_of(http)
    large = len(body) > LARGE_BYTES
    rows, read = await _apart(service, large, partial(_read, body, service.settings.call_rows, recommend=recommend))
    refusals: list[Answer | None] = []
    routed: list[Routed] = []
    for number, (row, request) in enumerate(zip(rows, read, strict=True)):
        if large and number % 16 == 0:
            await asyncio.sleep(0)  # others are answered while long lists are weighed
        try:
            if isinstance(request, GenreError):
                raise request
            routed.append(service.route(widened(service, request) if recommend else request))
            refusals.append(None)
        except GenreError as error:
            refusals.append(Answer(_refuse(service, row, str(error)), None))
    found = iter(await _score(service, http, routed, service.settings.timeout_s))
    answers = [refusal or next(found) for refusal in refusals]
    results = sum(len(answer.response.results) for answer in answers)
    impressions: list[Impression | None] = [None] * len(answers)
    kept = False
    if recommend and (service.explorer is not None or service.served is not None):
        drawn = await _apart(service, results > LARGE_RESULTS, partial(_draw, service, read, answers))
        answers, impressions = [answer for answer, _ in drawn], [impression for _, impression in drawn]
        kept = await keep(service, impressions)
    show = partial(_show, service, answers, impressions, recommend=recommend, kept=kept)
    body = await _apart(service, results > LARGE_RESULTS, show)
    _log_rows(service, http, rows, [(answer.response.error, answer.response.digest) for answer in answers])
    broken = all(answer.internal for answer in answers)
    return Reply(body, 500 if broken else 200, media_type=JSON)


async def _apart(service: Service, large: bool, work: Callable[[], _T]) -> _T:
    """Do what takes long in another thread, so that the event loop answers others meanwhile."""
    return await asyncio.get_running_loop().run_in_executor(service.bodies, work) if large else work()


def _read(body: bytes, most: int, *, recommend: bool) -> tuple[list[Any], list[Request | GenreError]]:
    """The rows of a body, and each as a request or the reason why it is none."""
    rows = read_rows(body, ScoreBody, most)
    read: list[Request | GenreError] = []
    for row in rows:
        filled = {**row, "k": DEFAULT_K} if recommend and isinstance(row, dict) and row.get("k") is None else row
        try:
            read.append(Request.from_json(filled))
        except GenreError as error:
            read.append(error)
    return rows, read


def _draw(
    service: Service, read: Sequence[Request | GenreError], answers: Sequence[Answer]
) -> list[tuple[Answer, Impression | None]]:
    """The answers with the lists that are shown, and the impression of each."""
    return [
        draw(service, request, answer) if isinstance(request, Request) else (answer, None)
        for request, answer in zip(read, answers, strict=True)
    ]


def _show(
    service: Service, answers: Sequence[Answer], impressions: Sequence[Impression | None], *, recommend: bool, kept: bool
) -> bytes:
    """The body with the answers, written one by one: no thread waits for all of them, and no object stays for each result."""
    shown = (
        describe(service, _titled(service, answer) if recommend else answer.response.to_json(), impression, kept=kept)
        for answer, impression in zip(answers, impressions, strict=True)
    )
    return b'{"responses":[' + b",".join(map(to_json, shown)) + b"]}"


def _refuse(service: Service, row: Any, error: str) -> Response:
    """The error response to a row of any form, with a shortened message."""
    service.metrics.row_failed("", "request")
    found = refused(row, shorten(error))
    return replace(found, id=None if found.id is None else shorten(found.id), adapter=shorten(found.adapter))


async def _score(service: Service, http: Http, rows: Sequence[Routed], timeout_s: float) -> list[Answer]:
    """The answers to all rows.

    Raises:
        Problem: 413, they are too much together; 429, the queue is full; 504, it took too long; 499, the client has gone.
    """
    if not rows:
        return []
    service.check_call(rows)
    request_id, caller = http.scope["genre"]["request_id"], caller_of(http)
    call = service.batcher.submit(rows, request_id=request_id, timeout_s=timeout_s, caller=caller)
    await _wait(call, http, timeout_s)
    return [answer for answer in call.answers if answer is not None]


async def _wait(call: Call, http: Http, timeout_s: float) -> None:
    gone = asyncio.ensure_future(_gone(http))
    try:
        await asyncio.wait({call.done, gone}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        call.given_up = not call.done.done()
        gone.cancel()
    if call.given_up:
        if gone.done() and not gone.cancelled():
            raise Problem(499, "client_gone", "the client closed the connection")
        raise timed_out(timeout_s)


async def _gone(http: Http) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


def timed_out(timeout_s: float) -> Problem:
    """504."""
    todo = "send fewer rows, or try again later"
    return Problem(504, "timeout", RequestError("the answer took too long", expected=f"within {timeout_s:g} seconds", todo=todo))


def _titled(service: Service, answer: Answer) -> Row:
    """The row of an answer, its items with titles, with what else the catalogue says of them, and with probabilities."""
    row = answer.response.to_json()
    items = [item for item in answer.response.results if isinstance(item, Scored)]
    if answer.deployment is not None and answer.response.error is None and items:
        catalogue = answer.deployment.catalogue
        titles, facts = service.lookup.titles(catalogue), service.lookup.facts(catalogue)
        row["results"] = [
            {"item_id": item.item_id, "score": item.score}
            | ({} if item.probability is None else {"probability": item.probability})
            | {"title": titles.of(item.item_id), "about": facts.of(item.item_id)}
            for item in items
        ]
    return row


def _log_rows(service: Service, http: Http, rows: Sequence[Any], answers: Sequence[tuple[Any, Any]]) -> None:
    """Add the call's rows to its log line, by each answer's error and digest; what was asked only with `log_rows`."""
    fields = http.scope["genre"]
    fields["rows"] = len(rows)
    fields["errors"] = sum(error is not None for error, _ in answers)
    fields["digests"] = sorted({digest for _, digest in answers if digest})
    if service.settings.log_rows:
        fields["requests"] = rows


async def explain_call(service: Service, http: Http) -> Reply:
    """Answer `/v1/explain`: one row after the other, each within what is left of the call's time.

    Raises:
        Problem: The call as a whole cannot be answered.
    """
    rows = read_rows(await body_of(http), ExplainBody, service.settings.call_rows)
    end = asyncio.get_running_loop().time() + service.settings.timeout_s
    shown: list[Row] = []
    for row in rows:
        left = end - asyncio.get_running_loop().time()
        if left <= 0:
            raise timed_out(service.settings.timeout_s)
        try:
            shown.append(await _explain(service, http, row, left))
        except GenreError as error:
            message = str(error).replace(service.engine.registry.url, "the registry")
            shown.append(_refuse(service, row, message).to_json())
    _log_rows(service, http, rows, [(row.get("error"), row.get("digest")) for row in shown])
    return reply({"responses": shown})


async def _explain(service: Service, http: Http, row: Any, left: float) -> Row:
    """One explanation; leave-one-out rows go through the queue like any others."""
    question = ExplainRequest.from_json(row)
    request, item, method = question.request(), question.item, question.method
    routed = service.route(request)
    deployment = routed.fallback or routed.deployment
    if method == "gradient":
        most = min(service.settings.batch_tokens, LONGEST_GRADIENT)
        if routed.tokens > most:  # one pass forward and backward, which cannot be cut
            got, expected = f"about {routed.tokens:,} tokens", f"at most {most:,}"
            raise RequestError("the row is too long for its gradient", got=got, expected=expected, todo="method: leave_one_out")
        work = partial(explain, service.engine, request, item, method=method, ref=deployment.ref)
        found = await _aside(service, http, deployment, work, left)
        return {"id": request.id, **found.to_json()}
    for _ in range(ATTEMPTS):
        parts = await _aside(service, http, deployment, partial(ask, service.engine, request, item, ref=deployment.ref), left)
        rows = [Routed(part, deployment, routed.tokens, results=1) for part in parts.requests]
        answers = await _score(service, http, rows, left)
        found = parts.read([answer.response for answer in answers])
        if found is not None:
            return {"id": request.id, **found.to_json()}
    raise JobError(f"{request.adapter} was swapped during its explanation", todo="ask again")


async def _aside(service: Service, http: Http, deployment: Deployment, work: Callable[[], Any], left: float) -> Any:
    """Run a part of an explanation outside of the event loop, within the time that is left, while its adapter is served."""

    def held() -> Any:
        with service.deployments.held(deployment.ref):
            return work()

    try:
        return await asyncio.wait_for(asyncio.wrap_future(service.explain_aside(held, caller_of(http))), left)
    except TimeoutError:
        raise timed_out(service.settings.timeout_s) from None
