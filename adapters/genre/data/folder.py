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
    """Read dataset.json; a folder without one is named after itself.

    Raises:
        DataError: The file is damaged.
    """
    path = folder / MARKER
    if not path.is_file():
        return DatasetInfo(name=folder.resolve().name)
    try:
        return DatasetInfo.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, ValidationError) as error:
        todo = "prepare or import the data set again, or remove the file"
        raise DataError(f"{path} is damaged", got=first_line(error), expected="a JSON object", todo=todo) from error


def check_data_folder(path: str | Path) -> None:
    """Refuse a folder that `write_folder` would not replace, before the work begins.

    Raises:
        InputError: It holds other files, or is a file.
    """
    refuse_foreign(Path(path).absolute(), MARKER)


def write_folder(path: str | Path, tables: Mapping[str, pl.DataFrame], info: DatasetInfo) -> Path:
    """Write a data set folder; it appears whole, or replaces an earlier data set folder.

    Raises:
        InputError: The folder holds other files.
        DiskError: The disk is full; nothing is left then.
    """
    with appearing_folder(Path(path), marker=MARKER) as aside:
        for name, table in tables.items():
            table.write_parquet(aside / f"{name}.parquet", compression="zstd")
        (aside / MARKER).write_text(info.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return Path(path)
