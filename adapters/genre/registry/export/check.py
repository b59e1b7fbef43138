"""A server asked whether it answers as an exported adapter.

Owns: the folder's files, errors of the command line. Ignores: how a server is asked (`client`).
"""

import json
from contextlib import closing
from pathlib import Path
from typing import Any

from genre.errors import InputError, IntegrityError, JobError, NotFoundError, RegistryError
from genre.registry.export.client import (
    CANARIES,
    SERVERS,
    ClientError,
    Prompts,
    check_server,
    read_canaries,
    read_texts,
    telling,
)


def untold(folder: Path) -> str | None:
    """Why an export's canaries do not tell its adapter from the base; None where they do, or where it needs none."""
    if not (folder / CANARIES).is_file():
        return None
    found = read_canaries(folder)
    if telling(found, found["tolerance"]):
        return None
    return str(found.get("reason") or f"on the prompts that were tried, {found['model']} answers as its base does")


def ask_canaries(
    url: str, folder: Path, *, model: str | None = None, server: str | None = None, tolerance: float | None = None
) -> list[dict[str, Any]]:
    """Send an export's canaries to a server.

    Args:
        url: The server.
        folder: The export.
        model: The server's name for the adapter.
        server: Its kind.
        tolerance: Largest difference in the probability of a label word.

    Returns:
        The canaries, with the server's probabilities as `answer`.

    Raises:
        RegistryError: The folder is no export with canaries, or there is no such kind of server.
        InputError: The URL is none, or llama.cpp is not installed.
        JobError: The server answers with the base, with neither of the two, or not at all; or no canary tells them apart.
    """
    if not (folder / CANARIES).is_file():
        expected = f"a folder of genre registry export with {CANARIES}"
        todo = "name it with --folder, and export it again if it is older or was exported without its base"
        raise NotFoundError("no canaries to ask with", got=folder, expected=expected, todo=todo)
    if server is not None and server not in SERVERS:
        raise RegistryError("there is no such kind of server", got=server, expected=" or ".join(SERVERS))
    try:
        found = read_canaries(folder)
        bound = found["tolerance"] if tolerance is None else tolerance
        kind = SERVERS[server or found["server"]]
        file = folder / "prompt.json"
        prompt = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
        try:
            asked = kind(url, (prompt or {}) | {"model": model or found["model"]})
        except ClientError as error:
            raise InputError(str(error)) from None
        with closing(asked):
            prompts = None if prompt is None or "code_sizes" in prompt else Prompts(prompt, read_texts(folder), asked.tokenize)
            return check_server(asked, found, bound, prompts)
    except (ValueError, KeyError, TypeError) as error:
        got = f"{type(error).__name__}: {error}"
        raise IntegrityError(f"the files of {folder} are damaged", got=got, todo="export it again") from None
    except ClientError as error:
        raise JobError(str(error)) from None
