"""Options of text files that no file of an import takes.

Owns: which of `--separator`, `--encoding` and `--quote` a file takes, the refusal of those that nothing would come of. Ignores
their values.

    options_of(Path("events.parquet"))                             ->  ()
    check_options({"separator": ";"}, (), "events.parquet")        InputError: --separator has no effect here: …
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from genre.data.importers.delimited import is_utf8
from genre.errors import InputError

ALL = ("separator", "encoding", "quote")
_JSON = (".jsonl", ".ndjson", ".json")
_BINARY = (".parquet", ".pq")
_ATOMIC = (".inter", ".item", ".user")
_KINDS = {"separator": "a CSV or TSV", "encoding": "a CSV, a TSV or JSON lines", "quote": "a CSV or TSV"}


def options_of(table: Path) -> tuple[str, ...]:
    """Return the options that a table takes, by its ending; of a folder those that any of its files takes."""
    if table.is_dir():
        files = [path for path in table.iterdir() if path.is_file()]
        return tuple(option for option in ALL if any(option in options_of(path) for path in files))
    endings = [ending.lower() for ending in table.suffixes if ending.lower() != ".gz"]
    ending = endings[-1] if endings else ""
    if ending in (*_BINARY, *_ATOMIC):
        return ()
    return ("encoding",) if ending in _JSON else ALL


def check_options(given: Mapping[str, Any], taken: Collection[str], what: str) -> None:
    """Refuse an option that no file of an import takes; UTF-8 is what all of them are in without one.

    Args:
        given: The value of each option, None where it is not given.
        taken: The options that some file takes.
        what: The file or format that takes none of the others, for the message.

    Raises:
        InputError: An option would have no effect.
    """
    for option, value in given.items():
        if value is None or option in taken or (option == "encoding" and is_utf8(value)):
            continue
        raise InputError(f"--{option} has no effect here", got=what, expected=_KINDS[option], todo=f"leave --{option} out")
