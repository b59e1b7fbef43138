"""Ray on this machine for the time of a job: loopback only, quiet, gone afterwards.

Owns: starting and stopping Ray, its output, its errors. Ignores: what it is used for.

    with ray_here(cpus=2) as reporter:
        reporter.line("…")                # standard error as it was; the output of Ray and its parts goes into a file
"""

import contextlib
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from genre.errors import GenreError, InputError, JobError
from genre.progress import Reporter

STORE_BYTES = 256 * 2**20
CLUSTER = "RAY_ADDRESS"
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""On every system: a node that is 127.0.0.1, and sockets that listen only there."""
TOKEN = "RAY_AUTH_TOKEN_PATH"


def need_ray() -> None:
    """Check that Ray Data is installed.

    Raises:
        InputError: It is not.
    """
    try:
        os.environ |= ENVIRONMENT if os.environ.get(CLUSTER) else ENVIRONMENT | LOOPBACK  # read when Ray is imported
        import ray.data  # noqa: F401
    except ModuleNotFoundError as error:
        todo = "pip install 'genre-adapters[ray]'"
        raise InputError("--engine ray needs another package", got=f"no {str(error.name).split('.')[0]}", todo=todo) from None


@contextlib.contextmanager
def ray_here(cpus: int) -> Iterator[Reporter]:
    """Run Ray on this machine's loopback for the time of the block (or use the cluster of RAY_ADDRESS); yield a reporter.

    Ray's output goes into its log folder, which is kept if the job fails.

    Args:
        cpus: Cores for all of its actors together.
    """
    need_ray()
    import ray

    folder = Path(tempfile.mkdtemp(prefix="genre-ray-"))
    failed = True
    try:
        with _quiet(folder / "driver.log") as reporter:
            if os.environ.get(CLUSTER):
                options: dict[str, Any] = {}
            else:
                (folder / "token").write_text(secrets.token_hex(32))  # else Ray puts one into the user's home
                os.environ[TOKEN] = str(folder / "token")
                options = {"address": "local", "num_cpus": cpus, "include_dashboard": False}
                options |= {"object_store_memory": STORE_BYTES, "_temp_dir": str(folder)}
            try:
                ray.init(log_to_driver=False, **options)
            except Exception as error:  # Ray raises whatever its parts do
                raise JobError("Ray did not start", got=(str(error).strip().splitlines() or [type(error).__name__])[0]) from None
            try:
                yield reporter
            finally:
                ray.shutdown()
        failed = False
    except GenreError as error:
        failed = type(error) is JobError
        raise JobError(error.what, got=error.got, todo=f"Ray's logs are in {folder}") if failed else error from None
    finally:
        if os.environ.get(TOKEN) == str(folder / "token"):
            del os.environ[TOKEN]
        if not failed:
            shutil.rmtree(folder, ignore_errors=True)


def rows_of(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Ray data set.

    Raises:
        JobError: For any error of Ray.
    """
    import ray.exceptions

    try:
        yield from rows
    except ray.exceptions.RayError as error:
        last = (str(error).strip().splitlines() or [""])[-1]
        raise JobError("a worker failed", got=f"{type(error).__name__}: {last}") from None


@contextlib.contextmanager
def _quiet(log: Path) -> Iterator[Reporter]:
    """Redirect this process's output into a file, except the reporter's: Ray's C++ parts write to the descriptors themselves."""
    kept = [os.dup(1), os.dup(2)]
    with os.fdopen(os.dup(2), "w") as stderr, log.open("ab") as file:
        try:
            _redirect([file.fileno()] * 2)
            yield Reporter.for_terminal(stderr)
        finally:
            _redirect(kept)
            for number in kept:
                os.close(number)


def _redirect(targets: list[int]) -> None:
    """Point standard output and error at other descriptors, after flushing to the old ones."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    for number, target in enumerate(targets, 1):
        os.dup2(target, number)
