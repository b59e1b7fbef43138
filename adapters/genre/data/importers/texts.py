"""A table of texts to labelled texts.

Owns: reading the file, the columns that are texts and labels. Ignores the rules for texts (`genre.data.texts.build`).

    product,review,stars
    1077,"I had such high hopes for this dress",2

    import_texts("reviews.csv", texts=["review"], labels=["stars"], mapping={"group_id": "product"}).write("data/reviews")
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from genre.data.importers.log import source_info
from genre.data.importers.tables import check_header, read_table
from genre.data.importers.text_options import check_options, options_of
from genre.data.schema import MAX_BAD, PLACE, Report
from genre.data.texts.dataset import Texts
from genre.errors import InputError


def import_texts(
    table: str | Path,
    *,
    texts: Sequence[str],
    labels: Sequence[str],
    mapping: Mapping[str, str] | None = None,
    name: str | None = None,
    licence: str = "",
    max_bad: float = MAX_BAD,
    separator: str | None = None,
    encoding: str = "utf-8",
    quote: str = '"',
    columns: list[str] | None = None,
) -> Texts:
    """Read a table with a row per text: CSV, TSV, Parquet or JSON lines.

    Args:
        table: The file.
        texts: The columns of texts, by our names.
        labels: The columns of labels, by our names.
        mapping: Our column to theirs; `group_id` names what a split keeps together, such as the product of a review.
        name: The data set's name; None takes the file's.
        licence: Terms of use, kept in dataset.json.
        max_bad: The share of bad rows above which the table is refused.
        separator: Of a CSV; None finds it.
        encoding: Of a CSV or JSON lines.
        quote: Around cells of a CSV; `none` if quotes are part of the texts.
        columns: The columns' names, in order, of a CSV without a header.

    Raises:
        InputError: If no label is named, or an option has no effect on such a file.
        DataError: If the file or its content is not usable.
    """
    table, report = Path(table), Report()
    given = {"separator": separator, "encoding": encoding, "quote": None if quote == '"' else quote}
    check_options(given, options_of(table), table.name)
    frame = read_table(table, separator=separator, encoding=encoding, quote=quote, columns=columns, report=report)
    if columns is None and not any((mapping or {}).get(name, name) in frame.columns for name in (*texts, *labels)):
        check_header(table, frame)
    if not labels:
        theirs = {theirs: ours for ours, theirs in (mapping or {}).items()}
        free = [theirs.get(column, column) for column in frame.columns if column != PLACE]
        free = [column for column in free if column not in (*texts, "text_id", "group_id")]
        got, todo = ", ".join(free) or "no other column", "name what is to be learnt; it may be repeated"
        raise InputError("no column is named as a label", got=got, expected="--label COLUMN", todo=todo)
    info = source_info(table, name, licence, "csv", mapping)
    return Texts.from_frame(
        frame, texts=texts, labels=labels, mapping=mapping, info=info, max_bad=max_bad, guess_numbers=True, report=report
    )
