r"""Operating a service: load, unload, promote, roll back, canary, behind a token.

Owns: who may, and what operators may say. Ignores: how versions are loaded. Without a token there are no such routes.

    curl -H "Authorization: Bearer $GENRE_ADMIN_TOKEN" -H "Content-Type: application/json" \
        -d '{"ref": "like@candidate"}' http://127.0.0.1:8000/v1/admin/promote
"""

import hashlib
import hmac
import math
from collections.abc import Callable
from typing import Any

from fastapi import Request as Http
from fastapi import Response as Reply
from starlette.concurrency import run_in_threadpool

from genre.errors import GenreError, InputError, RequestError
from genre.registry.names import PRODUCTION, check_name
from genre.serving.bodies import read_object
from genre.serving.calls import body_of, reply
from genre.serving.problems import Problem, problem_of
from genre.serving.service import Service

Act = Callable[[Service, dict[str, Any]], dict[str, Any]]
Fields = dict[str, type | tuple[type, ...]]


def check_token(service: Service, http: Http) -> None:
    """Compare in constant time, whatever the lengths; a client that guesses has to wait.

    Raises:
        Problem: 401, no token or a wrong one; 429, too many wrong ones.
    """
    client = http.client.host if http.client is not None else ""
    if (seconds := service.guesses.wait_s(client)) > 0:
        error = RequestError("too many wrong admin tokens", todo=f"try again in {math.ceil(seconds)} s")
        raise Problem(429, "too_many_guesses", error, {"Retry-After": str(math.ceil(seconds))})
    token = service.settings.token
    assert token is not None
    kind, _, given = http.headers.get("authorization", "").partition(" ")
    sent, wanted = given.strip().encode("latin-1"), token.get_secret_value().encode()  # headers are decoded as Latin-1
    same = hmac.compare_digest(hashlib.sha256(sent).digest(), hashlib.sha256(wanted).digest())
    if not same or kind.lower() != "bearer":
        service.guesses.wrong(client)
        error = RequestError("this needs the admin token", expected="the header Authorization: Bearer TOKEN")
        raise Problem(401, "unauthorized", error, {"WWW-Authenticate": "Bearer"})
    service.guesses.right(client)


async def act(service: Service, http: Http, name: str) -> Reply:
    """Do what an operator asks, outside of the event loop.

    Raises:
        Problem: They may not, or it cannot be done.
    """
    check_token(service, http)
    fields, needed, run = ACTS[name]
    body = read_object(await body_of(http), fields, needed)
    try:
        done = await run_in_threadpool(run, service, body)
    except GenreError as error:
        service.log.write(
            "admin refused", level="warning", request_id=http.scope["genre"]["request_id"], act=name, error=str(error)
        )
        raise problem_of(error, hide=service.engine.registry.url) from None
    service.log.write("admin", request_id=http.scope["genre"]["request_id"], act=name, **body)
    return reply(done | {"serving": {served.ref: served.version.digest for served in service.fleet.all() if served.public}})


def load(service: Service, body: dict[str, Any]) -> dict[str, Any]:
    """Serve one more reference."""
    digest = service.fleet.add(body["ref"]).version.digest
    return {"digest": digest, "remembered": service.memory.save()}


def unload(service: Service, body: dict[str, Any]) -> dict[str, Any]:
    """Serve a reference no longer."""
    service.memory.unload(body["ref"])
    return {"remembered": service.memory.save()}


def promote(service: Service, body: dict[str, Any]) -> dict[str, Any]:
    """Let an alias name a version, if it loads here and is good enough."""
    floor = body.get("floor") or {}
    if not all(isinstance(bound, int | float) and not isinstance(bound, bool) for bound in floor.values()):
        raise InputError("floor cannot be used", expected='numbers by metric, such as {"auc": 0.7}')
    move = service.fleet.promote(
        body["ref"], check_name(body.get("alias", PRODUCTION), "alias"), floor=floor, not_worse=body.get("not_worse", False)
    )
    service.canaries.sync()
    return {"move": {**vars(move), "checks": list(move.checks)}}


def rollback(service: Service, body: dict[str, Any]) -> dict[str, Any]:
    """Let an alias name what it named before."""
    move = service.fleet.rollback(check_name(body["name"]), check_name(body.get("alias", PRODUCTION), "alias"))
    service.canaries.sync()
    return {"move": {**vars(move), "checks": list(move.checks)}}


def canary(service: Service, body: dict[str, Any]) -> dict[str, Any]:
    """Give a name's candidate a share of its traffic; 0 ends it."""
    if not 0 <= body["share"] <= 1:
        raise InputError("share cannot be used", got=body["share"], expected="a number from 0 to 1")
    name, share = check_name(body["name"]), float(body["share"])
    found = service.canaries.set(name, share)
    service.memory.share(name, share)
    return {"canary": None if found is None else found.describe(), "remembered": service.memory.save()}


ACTS: dict[str, tuple[Fields, tuple[str, ...], Act]] = {
    "load": ({"ref": str}, ("ref",), load),
    "unload": ({"ref": str}, ("ref",), unload),
    "promote": ({"ref": str, "alias": str, "floor": dict, "not_worse": bool}, ("ref",), promote),
    "rollback": ({"name": str, "alias": str}, ("name",), rollback),
    "canary": ({"name": str, "share": (int, float)}, ("name", "share"), canary),
}
