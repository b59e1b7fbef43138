"""`/v1/score`, `/v1/recommend`, `/v1/explain`: from a call's bytes to its answer's.

Owns: one row after the other through parsing, the queue and back; which answer a call as a whole has. Ignores: how rows are
scored, limits before the body is there.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from fastapi import Request as Http
from fastapi import Response as Reply
from pydantic_core import to_json

from genre.engine import Request, Response
from genre.engine.explain import ATTEMPTS, ask, explain
from genre.engine.requests import ExplainRequest, refused
from genre.errors import GenreError, JobError, RequestError
from genre.serving.batching import Answer, Ask, Call
from genre.serving.bodies import read_rows
from genre.serving.problems import Problem, shorten
from genre.serving.schema import ExplainBody, ScoreBody
from genre.serving.served import Served
from genre.serving.service import Service

DEFAULT_K = 10
JSON = "application/json"
Row = dict[str, Any]


async def body_of(http: Http) -> bytes:
    """The body of a call that says it is JSON, which no form of another site can say.

    Raises:
        Problem: 415, it says something else.
    """
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != JSON:
        raise Problem(415, "not_json", RequestError("a call needs a JSON body", got=repr(kind[:80]), expected=JSON))
    return await http.body()


def reply(value: Any, status: int = 200) -> Reply:
    """A JSON answer."""
    return Reply(to_json(value), status_code=status, media_type=JSON)


async def score_call(service: Service, http: Http, *, recommend: bool = False) -> Reply:
    """Answer `/v1/score`, or `/v1/recommend`, where k is ten unless given and results carry titles.

    Raises:
        Problem: The call as a whole cannot be answered.
    """
    rows = read_rows(await body_of(http), ScoreBody, service.settings.call_rows)
    answers: list[Answer | None] = []
    asks: list[Ask] = []
    for row in rows:
        try:
            asks.append(service.ask(_request(row, recommend=recommend)))
            answers.append(None)
        except GenreError as error:
            service.metrics.row_failed("", "request")
            answers.append(Answer(_refused(row, error), None))
    found = iter(await _score(service, http, asks, service.settings.timeout_s))
    whole = [answer or next(found) for answer in answers]
    shown = [_titled(service, answer) if recommend else answer.response.to_json() for answer in whole]
    _tell(service, http, rows, whole)
    broken = all(answer.internal for answer in whole)
    return reply({"responses": shown}, 500 if broken else 200)


def _request(row: Any, *, recommend: bool) -> Request:
    if recommend and isinstance(row, dict) and row.get("k") is None:
        row = {**row, "k": DEFAULT_K}
    return Request.from_json(row)


def _refused(row: Any, error: GenreError | str) -> Response:
    """The error response to something that may be anything, no longer than helps."""
    found = refused(row, shorten(str(error)))
    return replace(found, id=None if found.id is None else shorten(found.id), adapter=shorten(found.adapter))


async def _score(service: Service, http: Http, asks: Sequence[Ask], timeout_s: float) -> list[Answer]:
    """Answers to all asks.

    Raises:
        Problem: 429, the queue is full; 504, it took too long; 499, nobody waits any more.
    """
    call = service.batcher.submit(asks, request_id=http.scope["genre"]["request_id"], timeout_s=timeout_s)
    await _wait(call, http, timeout_s)
    return [answer for answer in call.answers if answer is not None]


async def _wait(call: Call, http: Http, timeout_s: float) -> None:
    if call.done.done():
        return
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
    error = RequestError(
        "the answer took too long", expected=f"within {timeout_s:g} seconds", todo="send fewer rows, or try again later"
    )
    return Problem(504, "timeout", error)


def _titled(service: Service, answer: Answer) -> Row:
    row = answer.response.to_json()
    if answer.served is not None and row.get("results") and "item_id" in row["results"][0]:
        titles = service.lookup.titles(answer.served.catalogue)
        row["results"] = [{**item, "title": titles.of(item["item_id"])} for item in row["results"]]
    return row


def _tell(service: Service, http: Http, rows: Sequence[Any], answers: Sequence[Answer]) -> None:
    """What the call's log line says of its rows: who answered, not what was asked."""
    told = http.scope["genre"]
    told["rows"], told["errors"] = len(rows), sum(answer.response.error is not None for answer in answers)
    told["digests"] = sorted({answer.response.digest for answer in answers if answer.response.digest})
    if service.settings.log_rows:
        told["requests"] = rows


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
            service.metrics.row_failed("", "request")
            shown.append(_refused(row, str(error).replace(service.engine.registry.url, "the registry")).to_json())
    told = http.scope["genre"]
    told["rows"], told["errors"] = len(rows), sum("error" in row for row in shown)
    told["digests"] = sorted({row["digest"] for row in shown if "digest" in row})
    return reply({"responses": shown})


async def _explain(service: Service, http: Http, row: Any, left: float) -> Row:
    """One explanation; leave-one-out rows go through the queue like any others."""
    question = ExplainRequest.from_json(row)
    request, item, method = question.request(), question.item, question.method
    chosen = service.ask(request)
    served = chosen.instead or chosen.served
    if method == "gradient":
        work = partial(explain, service.engine, request, item, method=method, ref=served.ref)
        return _shown(request, await _aside(service, served, work, left))
    for _ in range(ATTEMPTS):
        parts = await _aside(service, served, partial(ask, service.engine, request, item, ref=served.ref), left)
        answers = await _score(service, http, [Ask(one, served, chosen.tokens) for one in parts.requests], left)
        found = parts.read([answer.response for answer in answers])
        if found is not None:
            return _shown(request, found)
    raise JobError(f"{request.adapter} was swapped while a score of it was explained", todo="ask again")


async def _aside(service: Service, served: Served, work: Callable[[], Any], left: float) -> Any:
    """Run what reads or differentiates outside of the event loop, within the time that is left, while it is served."""

    def held() -> Any:
        with service.fleet.held(served.ref):
            return work()

    try:
        return await asyncio.wait_for(asyncio.wrap_future(service.aside(held)), left)
    except TimeoutError:
        raise timed_out(service.settings.timeout_s) from None


def _shown(request: Request, found: Any) -> Row:
    return {"id": request.id, **found.to_json()}
