"""Women's Clothing reviews as labelled texts.

Owns: that table's columns by our names. Ignores how the file was fetched.

    clothing_id 1077, age 60, title "Some major design flaws", review "I had such high hopes …", recommended 0, rating 3
"""

from pathlib import Path

import polars as pl

from genre.data.folder import read_parquet
from genre.data.interactions import DatasetInfo
from genre.data.packaged.fetch import Source
from genre.data.texts.dataset import Texts

_COLUMNS = {
    "Clothing ID": "group_id",
    "Title": "title",
    "Review Text": "review",
    "Recommended IND": "recommended",
    "Rating": "rating",
    "Age": "age",
    "Positive Feedback Count": "positive_feedback",
    "Division Name": "division",
    "Department Name": "department",
    "Class Name": "class",
}


def convert_reviews(unpacked: Path, folder: Path, source: Source) -> None:
    """Write the data set folder: title and review; recommended (0, 1) and rating (1 to 5); the piece of clothing as the group.

    A review without a word is left out, and so is a row that equals an earlier one. `positive_feedback` was counted after the
    review was written.
    """
    (file,) = unpacked.glob("*.brotli")
    table = read_parquet(file).select(pl.col(theirs).alias(ours) for theirs, ours in _COLUMNS.items())
    info = DatasetInfo(name=source.name, source=source.origin, checksum=f"sha256:{source.sha256}", licence=source.licence)
    Texts.from_frame(table, texts=["title", "review"], labels=["recommended", "rating"], info=info).write(folder)
