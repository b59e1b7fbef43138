"""The OpenAPI document.

Owns: where each model goes, bodies (which our routes read themselves), the token. Ignores: what the models hold.
"""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from genre.serving import schema

SCHEMAS = "#/components/schemas/"
COMMON = (400, 408, 411, 413, 415, 421, 422, 429, 500, 503, 504)


def troubles(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problems of a route."""
    return {status: {"model": schema.Trouble} for status in statuses}


def body(model: type[BaseModel], examples: dict[str, Any] | None = None) -> dict[str, Any]:
    """What a route that reads its own body says of it."""
    content: dict[str, Any] = {"schema": {"$ref": SCHEMAS + model.__name__}}
    if examples:
        content["examples"] = examples
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def documented(app: FastAPI, models: list[type[BaseModel]], *, token: bool) -> Callable[[], dict[str, Any]]:
    """The function that makes the document once: FastAPI's, with the bodies' models and the token."""

    def make() -> dict[str, Any]:
        if app.openapi_schema is None:
            found = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            schemas = found.setdefault("components", {}).setdefault("schemas", {})
            for model in models:
                own = model.model_json_schema(ref_template=SCHEMAS + "{model}")
                schemas.update(own.pop("$defs", {}))
                schemas[model.__name__] = own
            if token:
                found["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            app.openapi_schema = found
        return app.openapi_schema

    return make
