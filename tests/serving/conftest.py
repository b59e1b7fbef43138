"""One service for the tests that only ask, and its engine for what they compare with."""

import io
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest
from serving_fakes import open_engine, serving

from genre.engine import Engine
from genre.serving import Service

REFS = ["like@production", "next_item@production", "rating@production"]


@dataclass(frozen=True)
class Asked:
    """A service, a client of it, its engine, its log."""

    service: Service
    client: httpx.Client
    engine: Engine
    log: io.StringIO


@pytest.fixture(scope="session")
def asked(trained) -> Iterator[Asked]:
    """A service over the three trained adapters with the planted log mounted. Nothing may be changed in it."""
    log = io.StringIO()
    with (
        open_engine(trained) as engine,
        serving(engine, REFS, stream=log, body_bytes=200_000, call_rows=50) as (service, client),
    ):
        yield Asked(service, client, engine, log)


@pytest.fixture(scope="session")
def hurried(asked) -> Iterator[tuple[str, int]]:
    """The address of a second service over the same engine, one that waits for nobody."""
    with serving(asked.engine, REFS, stream=io.StringIO(), body_bytes=200_000, receive_s=0.5, idle_s=1) as (_, client):
        yield client.base_url.host, client.base_url.port
