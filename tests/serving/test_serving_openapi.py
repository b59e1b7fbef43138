"""The OpenAPI document: its examples work, and what schemathesis makes of it never breaks the service."""

import contextlib
import io

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import load_all_checks, not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from serving_fakes import ADMIN, TOKEN, copy_of, open_engine, serving

from builders import Trained

load_all_checks()
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="session")
def service(trained: Trained, tmp_path_factory):
    """A service whose registry may be changed, with the admin calls."""
    registry = copy_of(trained.registry, tmp_path_factory.mktemp("openapi") / "registry")
    with (
        open_engine(trained, registry) as engine,
        serving(
            engine, ["like@production", "next_item@production", "rating@production"], token=TOKEN, stream=io.StringIO()
        ) as served,
    ):
        yield served


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_nothing_that_the_document_allows_or_forbids_breaks_the_service(service, mode):
    """Every operation of the document, with bodies and parameters that it allows, and with such that it forbids."""
    _, client = service
    document = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
    tried = dict.fromkeys((operation.ok().label for operation in document.get_all_operations()), 0)
    for found in document.get_all_operations():
        operation = found.ok()

        @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
        @given(case=operation.as_strategy(mode))
        def check(case):
            tried[case.operation.label] += 1  # noqa: B023
            response = case.call(base_url=str(client.base_url), headers=ADMIN if "admin" in case.operation.path else {})
            case.validate_response(response, checks=CHECKS)

        with contextlib.suppress(Unsatisfiable):  # an operation without parameters has nothing that could be wrong
            check()
    assert len(tried) == 17 and sum(map(bool, tried.values())) == (17 if mode == GenerationMode.POSITIVE else 12), tried


def test_the_examples_of_the_document_are_answered(service):
    from fastapi import FastAPI

    _, client = service
    document = client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.") and isinstance(FastAPI().openapi(), dict)
    known = {"50": "i0", "181": "i1", "196": "u3"}
    count = 0
    for path in ("/v1/score", "/v1/recommend", "/v1/explain"):
        content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        for name, example in content["examples"].items():
            text = repr(example["value"])
            for theirs, ours in known.items():
                text = text.replace(f"'{theirs}'", f"'{ours}'")
            answers = client.post(path, json=eval(text, {"__builtins__": {}})).json()["responses"]
            assert answers and not [answer for answer in answers if "error" in answer], (path, name, answers)
            count += 1
    assert count == 8


def test_every_reference_of_the_document_is_there(service):
    _, client = service
    document = client.get("/openapi.json").json()
    found = set()

    def walk(value):
        if isinstance(value, dict):
            found.update({value["$ref"]} if isinstance(value.get("$ref"), str) else ())
            for one in value.values():
                walk(one)
        elif isinstance(value, list):
            for one in value:
                walk(one)

    walk(document)
    assert "#/components/schemas/ScoreBody" in found
    assert {reference.removeprefix("#/components/schemas/") for reference in found} <= set(document["components"]["schemas"])
    for path in document["paths"]:
        if path.startswith("/v1/admin/"):
            assert document["paths"][path]["post"]["security"] == [{"token": []}]
