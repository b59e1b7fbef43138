"""The OpenAPI document, with examples.

Owns: where each model goes, bodies (which our routes read themselves), an example for each thing that people want first, the
token. Ignores: the models' fields.
"""

from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from genre.serving.http import schema

SCHEMAS = "#/components/schemas/"

SCORE_EXAMPLES = {
    "several tasks of one user": (
        {"id": "1", "adapter": "like@production", "user_id": "196", "candidates": ["50", "181"]},
        {"id": "2", "adapter": "next_item@production", "user_id": "196", "k": 10},
    ),
    "a history inline, and a new film": {
        "adapter": "like@production",
        "history": [{"item_id": "50", "rating": 5}],
        "candidates": ["181", {"title": "A new film"}],
    },
    "a new user": {"adapter": "next_item@production", "history": [], "k": 10},
}
RECOMMEND_EXAMPLES = {
    "ten films for a user": {"adapter": "next_item@production", "user_id": "196"},
    "five different films, but not that one": {
        "adapter": "next_item",
        "user_id": "196",
        "k": 5,
        "where": ["title != 'Toy Story'"],
        "diversity": 0.3,
    },
    "after two films": {
        "adapter": "next_item",
        "history": [{"item_id": "50", "rating": 5}, {"item_id": "181", "rating": 4}],
        "k": 5,
    },
}
EXPLAIN_EXAMPLES = {
    "why this film": {"adapter": "like@production", "user_id": "196", "item": "50"},
    "the fast way": {"adapter": "like@production", "user_id": "196", "item": "50", "method": "gradient"},
}

FEEDBACK_EXAMPLES = {
    "a click": {"impression_id": "0b8a5c1e9f2d4c3a8e7b6d5f4a3c2b1d", "item_id": "50", "reward": 1},
}


def troubles(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problems of a route."""
    return {status: {"model": schema.Trouble} for status in statuses}


def body(model: type[BaseModel], examples: Mapping[str, Any] | None = None, *, rows: str = "requests") -> dict[str, Any]:
    """The description of a body that a route reads itself; an example is a row, or several."""
    content: dict[str, Any] = {"schema": {"$ref": SCHEMAS + model.__name__}}
    if examples:
        several = {name: list(example) if isinstance(example, tuple) else [example] for name, example in examples.items()}
        content["examples"] = {name: {"value": {rows: each}} for name, each in several.items()}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def documented(app: FastAPI, models: list[type[BaseModel]], *, token: bool) -> Callable[[], dict[str, Any]]:
    """A function that makes the document once: FastAPI's, with the bodies' models and the token."""

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
