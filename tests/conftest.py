"""What every test shares: a cache of its own, a tiny base, a planted log, and a registry with three trained adapters."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from builders import LIKE, NEXT, RATING, Trained, recipe
from fakes import make_base, make_encoder_base, planted_log, planted_texts
from genre.data.interactions import Interactions
from genre.data.texts.dataset import Texts

# These read the user's cache.
REAL_DATA = {
    "test_packaged_real",
    "test_baselines_ml100k",
    "test_precision_ml100k",
    "test_quickstart",
    "test_registry_vllm_server",
    "test_first_hour",
    "test_registry_gguf_real",
} | {"test_registry_gguf_real"}


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test touches the user's cache, but for those that read real data."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENRE_CACHE", str(folder))
        for variable in ("GENRE_REGISTRY", "GENRE_DATA"):  # defaults of a developer's own shell
            patch.delenv(variable, raising=False)
        patch.setattr("genre.progress.EVERY_S", 600.0)  # a loaded machine adds no lines to what tests read
        yield folder


USERS_CACHE = os.environ.get("GENRE_CACHE")


@pytest.fixture(scope="module", autouse=True)
def users_cache(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if request.module.__name__ in REAL_DATA:
            patch.delenv("GENRE_CACHE") if USERS_CACHE is None else patch.setenv("GENRE_CACHE", USERS_CACHE)
        yield


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a two-layer Llama, 32 wide, with a byte tokenizer."""
    import torch

    torch.set_num_threads(1)
    return make_base(tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture
def base(tiny: Path):
    """A bare base of its own for each test (30 ms), so that no test can spoil another's."""
    from genre.modules.base.base import Base

    return Base.load(str(tiny))


@pytest.fixture
def build(base: Any, tiny: Path, log: Interactions) -> Iterator[Any]:
    """Assembles what a recipe of some tasks trains, on the test's own base; the next one takes the place of the one before."""
    from genre.training.assembly import assemble

    made: list[Any] = []

    def build(*tasks: Any, data: Interactions | None = None, **sections: Any) -> Any:
        if made:
            made.pop().release()
        assembly = assemble(recipe(tiny, *tasks, **sections), data or log, base)
        made.append(assembly.model)
        return assembly

    yield build
    for model in made:
        model.release()


@pytest.fixture(scope="session")
def texts() -> Texts:
    """320 labelled texts of 80 groups, whose words say their labels."""
    return planted_texts()


@pytest.fixture(scope="module")
def text_bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an encoder, `bert`, and a causal base, `llama`."""
    import torch

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("text-bases")
    make_encoder_base(folder / "bert")
    make_base(folder / "llama")
    return folder


@pytest.fixture
def bert(text_bases: Path):
    """A bare encoder base of its own for each test."""
    from genre.modules.base.base import Base

    return Base.load(str(text_bases / "bert"))


@pytest.fixture(scope="session")
def log() -> Interactions:
    """60 users, 30 items, 24 events each, two kinds of users and of items."""
    return planted_log()


@pytest.fixture(scope="session")
def trained(tiny: Path, log: Interactions, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """next_item (with a new encoder), like and rating, trained for two epochs and published."""
    import genre

    folder = tmp_path_factory.mktemp("trained")
    registry = genre.Registry(folder / "registry")
    base = genre.Base.load(str(tiny))
    runs = {}
    for task in (NEXT, LIKE, RATING):
        runs[task["name"]] = genre.train(recipe(tiny, task), log=log, base=base, registry=registry, folder=folder / task["name"])
        registry.publish(runs[task["name"]], alias=("latest", "production"))
    return Trained(registry, runs, log, tiny)
