"""Files of a data set folder.

Owns: the folder's marker, reading its Parquet files and dataset.json with errors of one line. Ignores what the columns mean.

    read_parquet(Path("data/ml-100k/interactions.parquet"))
"""

import json
from pathlib import Path

import polars as pl
from pydantic import ValidationError

from genre.data.schema import DatasetInfo
from genre.errors import DataError

MARKER = "dataset.json"
"""What says that a folder is a data set and may be replaced by another."""


def read_parquet(path: Path) -> pl.DataFrame:
    """Read one of the folder's tables.

    Raises:
        DataError: If the file is damaged.
    """
    try:
        return pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(
            f"{path} cannot be read",
            got=(str(error).splitlines() or [type(error).__name__])[0][:200],
            expected="a Parquet file",
            todo="prepare or import the data set again",
        ) from error


def read_info(path: Path) -> DatasetInfo:
    """Read dataset.json; a folder without one is called by its own name.

    Raises:
        DataError: If the file is damaged.
    """
    if not path.is_file():
        return DatasetInfo(name=path.parent.resolve().name)
    try:
        return DatasetInfo.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, ValidationError) as error:
        raise DataError(
            f"{path} is damaged",
            got=str(error).splitlines()[0][:200],
            expected="a JSON object",
            todo="prepare or import the data set again, or remove the file",
        ) from error
