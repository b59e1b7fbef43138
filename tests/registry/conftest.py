"""A registry in a temporary folder."""

from collections.abc import Callable
from pathlib import Path

import pytest
from registry_fakes import write_adapter
from served_fakes import World

import genre
from genre.registry import Registry


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry", cache=tmp_path / "cache")


@pytest.fixture
def adapter(tmp_path: Path) -> Callable[..., Path]:
    """Writes an adapter's files, other ones for each seed."""
    return lambda seed=0, **changes: write_adapter(tmp_path / f"adapter-{seed}", seed=seed, **changes)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, tiny: Path, log: genre.Interactions) -> World:
    """An adapter that a server can answer for."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    return World(tmp_path_factory.mktemp("served"), tiny, log)
