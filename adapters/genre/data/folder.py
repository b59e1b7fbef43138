"""Files of a data set folder: Parquet tables and dataset.json, the marker that says that the folder may be replaced.

Owns: reading them with errors of one line, writing them whole. Ignores the meaning of columns.

    read_parquet(Path("data/ml-100k/interactions.parquet"))
"""

import json
from collections.abc import Mapping
from pathlib import Path

import polars as pl
from pydantic import ValidationError

from genre.data.schema import DatasetInfo
from genre.data.user_key import UserKey, read_key
from genre.errors import DataError, first_line
from genre.files import appearing_folder, refuse_foreign

MARKER = "dataset.json"


def read_parquet(path: Path) -> pl.DataFrame:
    """Read one of the folder's tables.

    Raises:
        DataError: The file is damaged.
    """
    try:
        return pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        got = (str(error).splitlines() or [type(error).__name__])[0][:200]
        todo = "prepare or import the data set again"
        raise DataError(f"{path} cannot be read", got=got, expected="a Parquet file", todo=todo) from error


def read_info(folder: Path) -> DatasetInfo:
    """Read dataset.json and the folder's key; a folder without the former is named after itself.

    Raises:
        DataError: A file is damaged.
    """
    path, key = folder / MARKER, read_key(folder, needed=False)
    if not path.is_file():
        return DatasetInfo(name=folder.resolve().name, users_key=key)
    try:
        return DatasetInfo.model_validate(json.loads(path.read_text(encoding="utf-8")) | {"users_key": key})
    except (TypeError, ValueError, ValidationError) as error:
        todo = "prepare or import the data set again, or remove the file"
        raise DataError(f"{path} is damaged", got=first_line(error), expected="a JSON object", todo=todo) from error


def check_data_folder(path: str | Path) -> None:
    """Refuse a folder that `write_folder` would not replace, before the work begins.

    Raises:
        InputError: It holds other files, or is a file.
    """
    refuse_foreign(Path(path).absolute(), MARKER)


def write_folder(path: str | Path, tables: Mapping[str, pl.DataFrame], info: DatasetInfo) -> Path:
    """Write a data set folder; it appears whole, or replaces an earlier data set folder, whose key it keeps.

    Raises:
        InputError: The folder holds other files.
        DataError: The key of the earlier folder is damaged.
        DiskError: The disk is full; nothing is left then.
    """
    with appearing_folder(Path(path), marker=MARKER) as aside:
        for name, table in tables.items():
            table.write_parquet(aside / f"{name}.parquet", compression="zstd")
        (aside / MARKER).write_text(info.model_dump_json(indent=2) + "\n", encoding="utf-8")
        keep_key(Path(path), aside, info.users_key)
    return Path(path)


def keep_key(earlier: Path, folder: Path, inherited: UserKey | None = None) -> None:
    """Give a folder the key of the one that it replaces, or else that of the folder that its data came from."""
    key = read_key(earlier) or inherited
    if key is not None:
        key.write(folder)
