"""Quality figures of the benchmarks as tables, shared by the HTML report and docs/benchmarks.md."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

MIB = 2**20


@dataclass(frozen=True)
class Table:
    """A table: its title, its protocol, and its cells as text."""

    title: str
    note: str
    header: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """The table as Markdown."""
        lines = [f"**{self.title}.** {self.note}", "", "| " + " | ".join(self.header) + " |", "|---" * len(self.header) + "|"]
        return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in self.rows)]) + "\n"


def tables(name: str, figures: dict[str, Any]) -> list[Table]:
    """The tables of one benchmark, none if it has none of its own."""
    made = {
        "baselines": baselines,
        "ads": baselines,
        "adapter_vs_full": adapter_vs_full,
        "adapter_vs_full_seeds": adapter_vs_full,
        "adapter_vs_full_all": adapter_vs_full,
        "cold_items": cold,
        "ablation": ablation,
    }
    return list(made[name](figures)) if name in made and figures else []


def brief(name: str, figures: dict[str, Any]) -> list[Table]:
    """Short tables of a benchmark for docs/benchmarks.md; adapter_vs_full shows every task, so that no loss is left out."""
    if not figures:
        return []
    if name in ("baselines", "ads"):
        return [beside_baselines(task, found, figures) for task, found in figures["tasks"].items()]
    if name == "cold_items":
        return [cold_slices(figures)]
    return tables(name, figures)[: None if name.startswith("adapter_vs_full") else 1]


def beside_baselines(task: str, found: dict[str, Any], figures: dict[str, Any]) -> Table:
    """The adapter beside the best baseline of one task, and beside the rival with the adapter's own additions."""
    methods = found["methods"]
    metric = next(iter(methods["adapter"]["metrics"]))
    best = methods["adapter"].get("against_best", {}).get("baseline") or _best(methods, metric)
    rows = []
    for other in (best, *(name for name in methods if name in SAME_TERM)):
        beside = f"{SAME_TERM.get(other, words(other))} {shown(methods[other]['metrics'][metric])}"
        better = difference(methods[other]["adapter_better_by"][metric])
        rows.append([f"**{shown(methods['adapter']['metrics'][metric])}**", beside, better, f"{found['n']:,}"])
    seeds = f"the mean of {len(figures['seeds'])} seeds, " if len(figures.get("seeds", [])) > 1 else ""
    note = f"{seeds}the {figures.get('part', 'test')} part, 95 % user-bootstrap intervals, paired.".capitalize()
    return Table(f"{words(task)} beside strong baselines", note, [f"adapter, {metric}", "beside", "adapter better by", "n"], rows)


SAME_TERM = {"self_attentive_fused": "self attentive with the adapter's own averaging and linear term"}
"""Not a published baseline: it shows how much of the adapter's lead is due to its averaging and linear term."""


def _best(methods: dict[str, Any], metric: str) -> str:
    """The baseline with the smallest deficit to the adapter."""
    ahead = {name: method["adapter_better_by"][metric]["value"] for name, method in methods.items() if name != "adapter"}
    return min(ahead, key=lambda name: ahead[name])


def shown(figure: dict[str, Any], sign: str = "") -> str:
    """A value with its interval, four digits."""
    if figure.get("value") is None:
        return "–"
    low, high = figure["interval"] if figure.get("interval") else (figure["low"], figure["high"])
    return f"{figure['value']:{sign}.4f} [{low:{sign}.4f}, {high:{sign}.4f}]"


def difference(figure: dict[str, Any]) -> str:
    """A difference with its interval, marked if it holds zero."""
    low, high = figure["interval"] if figure.get("interval") else (figure["low"], figure["high"])
    return shown(figure, "+") + (", not distinguishable" if low <= 0 <= high else "")


def words(name: str) -> str:
    """A name in words."""
    return name.replace("_", " ")


def baselines(figures: dict[str, Any]) -> Iterator[Table]:
    """Methods of each task, the adapter's paired difference in the first metric."""
    for task, found in figures["tasks"].items():
        methods = found["methods"]
        metrics = list(methods["adapter"]["metrics"])
        rows = []
        for name, method in methods.items():
            better = next(iter(method.get("adapter_better_by", {}).values()), None)
            rows.append(
                [words(name), *(shown(method["metrics"][metric]) for metric in metrics), difference(better) if better else ""]
            )
        seeds = f", seeds {', '.join(map(str, figures['seeds']))}" if "seeds" in figures else ""
        note = (
            f"{found['protocol']}; {figures.get('part', 'test')} part, {found['n']:,} targets of {found['users']:,} users{seeds}."
        )
        best = methods["adapter"].get("against_best")
        if best:
            note += f" Against {words(best['baseline'])}, the best of them in {best['metric']}: {shown(best['ratio'])} times."
        yield Table(words(task), note, ["method", *metrics, f"adapter better by ({metrics[0]})"], rows)


def adapter_vs_full(figures: dict[str, Any]) -> Iterator[Table]:
    """Ways to train, each beside the full fine-tune: with one seed what they cost, with several their quality only."""
    seeds = figures["seeds"]
    for task, ways in figures["tasks"].items():
        first = next(iter(ways.values()))["test"]
        alone = [way != "full" for way in ways]
        differences = [difference(row["minus_full"]) if other else "" for other, row in zip(alone, ways.values(), strict=True)]
        below = [f"{max(row['at_most_worse'], 0):.1%}" if other else "" for other, row in zip(alone, ways.values(), strict=True)]
        columns = {
            "way": [words(way) for way in ways],
            first["metric"]: [shown(row["test"]) for row in ways.values()],
            "minus full": differences,
            "below full, at most": below,
        }
        columns["learning rate"] = [f"{row['learning_rate']:g}" if row["learning_rate"] else "" for row in ways.values()]
        if len(seeds) == 1:
            columns |= _costs(ways)
        note = f"{figures['protocol']}; {_budget(figures, ways)}; test part, n = {first['n']:,}."
        rows = [list(row) for row in zip(*columns.values(), strict=True)]
        yield Table(f"{words(task)}: adapter against full fine-tuning", note, list(columns), rows)


def _costs(ways: dict[str, Any]) -> dict[str, list[str]]:
    """The costs of each way, by column name."""
    rows = list(ways.values())
    rates, peaks = ([row.get(key) for row in rows] for key in ("tokens_per_second", "peak_memory_beyond_base"))
    return {
        "trained parameters": [f"{row['trained_parameters'] + row['head_parameters']:,}" for row in rows],
        "MiB": [f"{row['bytes'] / MIB:.1f}" for row in rows],
        "seconds": [f"{row['seconds']:.0f}" for row in rows],
        "tokens/s": [f"{rate:.0f}" if rate else "" for rate in rates],
        "peak MiB beyond base": [f"{peak / MIB:.0f}" if peak else "" for peak in peaks],
    }


def _budget(figures: dict[str, Any], ways: dict[str, Any]) -> str:
    """The budget that all ways share, in words."""
    limit = f", the latest {figures['limit']:,} training events" if figures["limit"] else ", all training events"
    counts = figures["learning_rates"]
    usual = max(counts.values(), key=list(counts.values()).count)
    others = "".join(f", {count} for {words(way)}" for way, count in counts.items() if count != usual)
    chosen = f", {usual} learning rates for each way{others}" if max(counts.values()) > 1 else ""
    seeds = figures["seeds"]
    drawn = (
        f"seed {seeds[0]}" if len(seeds) == 1 else f"means over the seeds {', '.join(map(str, seeds))}, rates chosen by the first"
    )
    threads = {row["threads"] for row in ways.values() if "threads" in row} if len(seeds) == 1 else set()
    timed = f", threads of a run: {' or '.join(map(str, sorted(threads)))}" if threads else ""
    return f"{figures['depth']} layers, {figures['epochs']} epochs{limit}, {drawn}{chosen}{timed}"


def cold(figures: dict[str, Any]) -> Iterator[Table]:
    """NDCG@10 on cold items, for each way of ranking."""
    for entry in figures["results"].values():
        rows = [
            [words(name), shown(found["ndcg@10"]), difference(found["adapter_better_by"]) if "adapter_better_by" in found else ""]
            for name, found in entry["methods"].items()
        ]
        best = entry["against_best"]
        note = (
            f"Ranked {entry['ranked']}; {figures['part']} part, {entry['n']:,} targets of {entry['users']:,} users; against "
            f"{words(best['baseline'])}, the best that knows items by id only: {shown(best['ratio'])} times."
        )
        yield Table(f"items with {entry['targets']}", note, ["method", "NDCG@10", "adapter better by"], rows)


def cold_slices(figures: dict[str, Any]) -> Table:
    """NDCG@10 of each way of ranking on every slice of cold items, so that no loss is left out."""
    slices = figures["results"]
    first = next(iter(slices.values()))
    counts = "; ".join(
        dict.fromkeys(f"{entry['targets']}: {entry['n']:,} targets of {entry['users']:,} users" for entry in slices.values())
    )
    header = ["method", *(f"items with {entry['targets']}, {entry['ranked']}" for entry in slices.values())]
    rows = [
        [words(method), *(shown(entry["methods"][method]["ndcg@10"]) for entry in slices.values())] for method in first["methods"]
    ]
    note = f"NDCG@10 on the {figures['part']} part; {counts}. Methods by id know nothing of an item without training events."
    return Table("Items that training hardly knows", note, header, rows)


def ablation(figures: dict[str, Any]) -> Iterator[Table]:
    """The effect of each item feature."""
    rows = []
    for arm, found in figures["arms"].items():
        gain = found.get("against_full")
        rows.append([words(arm), shown(found["ndcg@10"]), difference(gain) if gain else ""])
    note = f"{figures['part'].capitalize()} part, n = {next(iter(figures['arms'].values()))['ndcg@10']['n']:,}, one seed."
    yield Table("item features", note, ["encoder", "NDCG@10", "minus full"], rows)
