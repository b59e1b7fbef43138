r"""Operating a service: load, unload, promote, roll back, canary, behind a token.

Owns: the acts of operators and their bodies. Ignores: how versions are loaded. Without a token there are no such routes.

    curl -H "Authorization: Bearer $GENRE_ADMIN_TOKEN" -H "Content-Type: application/json" \
        -d '{"ref": "like@candidate"}' http://127.0.0.1:8000/v1/admin/promote
"""

from collections.abc import Callable
from typing import Any

from fastapi import Request as Http
from fastapi import Response as Reply
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from genre.errors import GenreError
from genre.registry.names import check_name
from genre.serving.http.bodies import body_of, caller_of, need_json, read_body, reply
from genre.serving.http.schema import CanaryBody, LoadBody, PromoteBody, RollbackBody
from genre.serving.problems import problem_of
from genre.serving.service import Service


async def act(service: Service, http: Http, name: str) -> Reply:
    """Run an admin action outside of the event loop.

    Raises:
        Problem: The token is wrong, or the act cannot be carried out.
    """
    need_json(http)  # which a form of another site cannot declare, nor can it send the header of the token
    service.access.check(caller_of(http), http.headers.get("authorization", ""))
    request_id = http.scope["genre"]["request_id"]
    model, run = ACTS[name]
    body = read_body(await body_of(http), model)
    try:
        done = await run_in_threadpool(run, service, body)
    except GenreError as error:
        service.log.write("admin refused", level="warning", request_id=request_id, act=name, error=str(error))
        raise problem_of(error, hide=service.engine.registry.url) from None
    service.log.write("admin", request_id=request_id, act=name, **body.model_dump(exclude_unset=True))
    serving = {deployment.ref: deployment.version.digest for deployment in service.deployments.public()}
    return reply(done | {"serving": serving})


def load(service: Service, body: LoadBody) -> dict[str, Any]:
    """Serve one more reference."""
    digest = service.deployments.add(body.ref).version.digest
    return {"digest": digest, "remembered": service.state.save()}


def unload(service: Service, body: LoadBody) -> dict[str, Any]:
    """Stop serving a reference."""
    service.state.unload(body.ref)
    return {"remembered": service.state.save()}


def promote(service: Service, body: PromoteBody) -> dict[str, Any]:
    """Point an alias at a version, if it loads here and is good enough."""
    alias = check_name(body.alias, "alias")
    move = service.deployments.promote(body.ref, alias, floor=body.floor, not_worse=body.not_worse)
    service.canaries.sync()
    return {"move": {**vars(move), "checks": list(move.checks)}}


def rollback(service: Service, body: RollbackBody) -> dict[str, Any]:
    """Roll an alias back to its previous version."""
    move = service.deployments.rollback(check_name(body.name), check_name(body.alias, "alias"))
    service.canaries.sync()
    return {"move": {**vars(move), "checks": list(move.checks)}}


def canary(service: Service, body: CanaryBody) -> dict[str, Any]:
    """Give a name's candidate a share of its traffic; 0 ends it."""
    found = service.canaries.set(check_name(body.name), body.share)
    service.state.set_share(body.name, body.share)
    return {"canary": None if found is None else found.describe(), "remembered": service.state.save()}


ACTS: dict[str, tuple[type[BaseModel], Callable[[Service, Any], dict[str, Any]]]] = {
    "load": (LoadBody, load),
    "unload": (LoadBody, unload),
    "promote": (PromoteBody, promote),
    "rollback": (RollbackBody, rollback),
    "canary": (CanaryBody, canary),
}
