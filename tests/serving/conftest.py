"""One service for the tests that only ask, and its engine for what they compare with."""

import io
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest
from page_fakes import crowd, launched, opened
from serving_fakes import TOKEN, add_version, copy_of, open_engine, serving

import genre
from builders import LIKE
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


@pytest.fixture(scope="session")
def candidate(trained, tmp_path_factory) -> genre.Registry:
    """A registry of the three adapters, and a candidate of `like` with other weights and no metrics."""
    folder = tmp_path_factory.mktemp("page")
    registry = copy_of(trained.registry, folder / "registry")
    version = add_version(registry, trained, genre.Base.load(str(trained.base)), folder / "like", LIKE, seed=5)
    registry.promote(version.ref, "candidate")
    return registry


@pytest.fixture(scope="session")
def shown(trained, candidate) -> Iterator[httpx.Client]:
    """What the page is looked at through: a client of a service with an admin token over 10,000 users."""
    engine = Engine(genre.Base.load(str(trained.base)), candidate, lanes=8, data=crowd())
    refs = ["like@production", "rating@production", "next_item@production", "like@candidate"]
    with engine, serving(engine, refs, token=TOKEN, follow_s=0) as (_, client):
        yield client


@pytest.fixture(scope="module")
def browser():
    """A browser; of a module, since its driver's event loop keeps the main thread from running another."""
    with launched() as browser:
        yield browser


@pytest.fixture
def page(browser, shown):
    """The page, ready."""
    with opened(browser, shown) as page:
        page.wait_for_selector(".choice")
        yield page
