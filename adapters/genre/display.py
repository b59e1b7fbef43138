"""Values as people see them in a notebook: tables as HTML, an area that is drawn anew.

Owns: escaping, the form of tables, whether this process runs a notebook. Ignores: what is shown. Nothing of IPython is loaded
unless a notebook has loaded it.

    table("like@production", ["item_id", "score"], [("50", 0.83)])     # a title and a table, every text escaped
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

_NUMBER = ' style="text-align: right"'
_TEXT = ' style="text-align: left"'


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]], *, note: str = "") -> str:
    """A title, a table and a note as HTML; numbers to the right, None as an empty cell."""
    head = "".join(f"<th{_TEXT}>{escape(name)}</th>" for name in header)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    after = f"<p>{escape(note)}</p>" if note else ""
    return f"<p><b>{escape(title)}</b></p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{after}"


def facts(title: str, values: Mapping[str, object], *, note: str = "") -> str:
    """A title and a table of two columns as HTML: what, and its value."""
    rows = "".join(f"<tr><th{_TEXT}>{escape(name)}</th>{_cell(value)}</tr>" for name, value in values.items())
    after = f"<p>{escape(note)}</p>" if note else ""
    return f"<p><b>{escape(title)}</b></p><table><tbody>{rows}</tbody></table>{after}"


def text(title: str, lines: str) -> str:
    """A title and a text whose lines are kept, as HTML."""
    return f"<p><b>{escape(title)}</b></p><pre>{escape(lines)}</pre>"


def folded(summary: str, text: str) -> str:
    """A text that opens by a click, as HTML."""
    return f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>"


def _cell(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"<td{_TEXT}>{'' if value is None else escape(str(value))}</td>"
    return f"<td{_NUMBER}>{f'{value:,}' if isinstance(value, int) else f'{value:.4f}'}</td>"


FIGURES = ("task", "scorer", "metric", "value", "low", "high", "n")
"""The columns of a table of metrics; `low` and `high` are the ends of the 95 % interval."""


def figure_rows(task: str, scorer: str, metrics: Mapping[str, Mapping[str, Any]]) -> list[tuple[object, ...]]:
    """Rows of `FIGURES` from metrics as manifests and runs have them: {metric: {value, interval, n}}."""
    rows: list[tuple[object, ...]] = []
    for metric, found in metrics.items():
        low, high = found.get("interval") or (None, None)
        rows.append((task, scorer, metric, found["value"], low, high, found.get("n")))
    return rows


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook, which shows HTML."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


class Area:
    """A place below a notebook's cell whose content can be replaced; gone when it is closed."""

    def __init__(self) -> None:
        from IPython.display import display

        self._handle = display(_Html(""), display_id=True)

    def show(self, html: str) -> None:
        """Replace the content."""
        self._handle.update(_Html(html))

    def close(self) -> None:
        """Leave nothing behind."""
        self.show("")


class _Html:
    """HTML, with nothing in its place where a front end shows only text."""

    def __init__(self, html: str) -> None:
        self.html = html

    def __repr__(self) -> str:
        return ""

    def _repr_html_(self) -> str:
        return self.html
