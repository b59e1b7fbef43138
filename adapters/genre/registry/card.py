"""The model card: a version described for a person who has only its folder.

Owns: the text of `README.md`. Ignores: everything that is not in the manifest. A stored card is part of the digest, so
it leaves out what the digest leaves out (version, time, cost); an exported card has all of it.
"""

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from genre.registry.manifest import DataInfo, Manifest, MetricValue
from genre.registry.names import WITHHELD
from genre.registry.records import BaselineRecord

_ADDED = "<!-- added by the export -->"
_LICENCE = (
    "The weights derive from the base and from the data named above; their licences apply to them. "
    "Check both before you pass the weights on."
)


def render_card(manifest: Manifest, *, full: bool = False) -> str:
    """Return the card of a version or a draft as Markdown; `full` adds version, digest, time and cost."""
    return "\n".join(_lines(manifest, full)) + "\n"


def extend_card(card: str, manifest: Manifest, usage: str) -> str:
    """The card of an export: a stored card, then what it leaves out, then how the folder is used."""
    version = _table([("version", manifest.version), ("digest", manifest.digest), ("created", manifest.created)])
    lines = ("", _ADDED, "", "## Version", "", *version, "## Cost", "", *_table(_cost(manifest)))
    return card + "\n".join(lines) + usage


def stored_part(card: str) -> str:
    """The stored card that `extend_card` began with."""
    return card.partition(f"\n{_ADDED}\n")[0]


def is_rendered(card: str, manifest: Manifest) -> bool:
    """Return whether a stored card is of `render_card`, and not a person's own."""
    return _title(manifest) in card and card.rstrip().endswith(_LICENCE)


def format_metric(value: MetricValue) -> str:
    """A metric as `0.7610 [0.7520, 0.7680], n = 10,011`."""
    interval = f" [{value.interval[0]:.4f}, {value.interval[1]:.4f}]" if value.interval else ""
    return f"{value.value:.4f}{interval}" + (f", n = {value.n:,}" if value.n is not None else "")


def _lines(manifest: Manifest, full: bool) -> Iterator[str]:
    base = manifest.base
    yield from ("---", f"base_model: {json.dumps(base.name)}", "library_name: peft")
    yield from ("tags: [genre, lora, recommendation]", "---", "")
    yield from (_title(manifest), "")
    if full:
        yield from _table([("version", manifest.version), ("digest", manifest.digest), ("created", manifest.created)])
    yield from ("## Tasks", "", *(_task(task) for task in manifest.tasks), *([] if manifest.tasks else ["none"]), "")
    depth = "all" if base.depth is None else f"the first {base.depth} only (on more it loads, and is wrong)"
    yield from ("## Base", "")
    yield from _table([("name", base.name), ("layers", depth), ("weights", base.fingerprint), ("trained in", base.quantization)])
    rows = [("tokenizer", manifest.tokenizer), ("encoder", manifest.encoder), ("catalogue", manifest.catalogue)]
    yield from _table([(field, value) for field, value in rows if value])
    yield from ("## Data", "", *_data(manifest))
    yield from ("## Metrics", "", *_metrics(manifest))
    if full:
        yield from ("## Cost", "", *_table(_cost(manifest)))
    if manifest.parents:
        yield from ("## Parents", "", *(f"- {parent}" for parent in manifest.parents), "")
    yield from ("## Licence", "", _LICENCE)


def _title(manifest: Manifest) -> str:
    return f"# {manifest.name}\n\nA GENRE version of kind `{manifest.kind}`."


def _cost(manifest: Manifest) -> list[tuple[str, str]]:
    return [(field.replace("_", " "), f"{value:,}") for field, value in manifest.cost]


def describe_task(task: Mapping[str, Any]) -> str:
    """A task in words: what is predicted, then its other fields that are set."""
    ranks = task.get("kind") == "next_item"
    told = {"name", "kind", "label", *([] if ranks else ["seen"]), *(["weight"] if task.get("weight") == 1 else [])}
    shown = {key: value for key, value in task.items() if value not in (None, [], "") and key not in told}
    what = "the next item" if ranks else str(task.get("label") or task.get("kind") or "")
    details = [f"{key.replace('_', ' ')} {_words(value)}" for key, value in shown.items()]
    return ", ".join([what, *details] if what else details)


def describe_data(data: DataInfo) -> list[tuple[str, str]]:
    """What is known of a version's data, as rows: its name, digest, size, time and splits."""
    rows = [("data set", data.name)] if data.name else []
    rows += [("digest", data.digest), ("training events", WITHHELD if data.digest == WITHHELD else f"{data.rows:,}")]
    if data.time_span:
        first, last = (_day(second) for second in data.time_span)
        rows.append(("time", f"{first} to {last}"))
    used: Any = data.split or {}
    own = used.get("split") if isinstance(used.get("split"), dict) else used
    if own:
        rows.append(("split", _split(own)))
    if held := used.get("hold_out"):
        rows.append(("also held out", "; ".join(_split(each) for each in held)))
    return rows


def baseline_section(record: BaselineRecord) -> str:
    """What a version was measured against, as a section of its card."""
    lines = ["", "## Baselines", "", "On the same targets, by the same protocol.", ""]
    lines += ["| task | metric | baseline | value |", "|---|---|---|---|"]
    for task, baselines in record.baselines.items():
        for name, metrics in baselines.items():
            shown = name.replace("_", " ")
            lines += [f"| {task} | {metric} | {shown} | {format_metric(value)} |" for metric, value in metrics.items()]
    return "\n".join([*lines, *(f"\n{note}" for note in record.notes)]) + "\n"


def _split(config: Mapping[str, Any]) -> str:
    settings = ", ".join(
        f"{key.replace('_', ' ')} {value}" for key, value in config.items() if key != "kind" and value not in (None, 0)
    )
    return f"{config.get('kind', 'unknown')}" + (f" ({settings})" if settings else "")


def _words(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_words, value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _day(second: int) -> str:
    try:
        return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%d")
    except (OverflowError, OSError, ValueError):  # a log whose times are ranks, or later than the calendar
        return str(second)


def _task(task: Mapping[str, Any]) -> str:
    details = describe_task(task)
    return f"- `{task['name']}`" + (f": {details}" if details else "")


def _data(manifest: Manifest) -> Iterator[str]:
    if manifest.data is None:
        yield from ("not recorded", "")
        return
    yield from _table(describe_data(manifest.data))


def _metrics(manifest: Manifest) -> Iterator[str]:
    if not manifest.metrics:
        yield from ("not evaluated", "")
        return
    yield from ("| task | metric | value |", "|---|---|---|")
    for task, values in manifest.metrics.items():
        for metric, value in values.items():
            yield f"| {task} | {metric} | {format_metric(value)} |"
    yield ""
    for task in manifest.metrics:
        yield f"Protocol of `{task}`: {manifest.protocol.get(task, 'not recorded')}."
        yield ""


def _table(rows: list[tuple[str, str]]) -> Iterator[str]:
    if rows:
        yield from ("| | |", "|---|---|", *(f"| {field} | {value} |" for field, value in rows), "")
