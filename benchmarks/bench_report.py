"""A self-contained page of all benchmark figures: build/bench/report.html."""

import json
from pathlib import Path
from typing import Any

from bench_tables import brief, tables
from bench_words import worded
from genre.jobs.report.figures import ACCENT, INK, REST, figure_of, intervals, render, svg_of
from readme import mark
from suite import SUITE

TEMPLATES = Path(__file__).parent / "templates"

BARS = {
    "text_vs_prompts": 10,
    "token_vs_prompts": 60,
    "time_to_quality": 10,
    "lanes_16_vs_base": 0.93,
    "lanes_16_vs_peft_mixed": 1.6,
    "lanes_16_vs_one_by_one": 2.4,
    "branches_vs_prompts": 16,
    "branches_vs_kv_cache": 1.5,
    "tasks_4_shared": 1.8,
    "candidates_1000": 20,
    "lanes_64_of_1000": 0.6,
    "swap_throughput": 0.9,
    "adapter_vs_full_throughput": 1.25,
    "text_vs_peft": 1.0,
    "token_vs_peft": 1.0,
    "mixed_vs_peft": 1.0,
    "mixed_vs_vllm": 1.0,
    "mixed_five_vs_adapterhub": 1.0,
    "mixed_five_vs_peft": 1.0,
    "candidates_vs_vllm": 1.0,
    "candidates_vs_peft": 1.0,
    "http_vs_direct": 0.85,
    "returning_batch_30": 8.0,
    "returning_alone_30": 6.0,
    "returning_batch_4": 3.0,
    "returning_alone_4": 3.0,
    "returning_sessions": 3.0,
    "returning_bursts": 3.0,
    "returning_sessions_30": 3.0,
    "returning_bursts_30": 3.0,
    "returning_strangers": 0.98,
    "returning_warm_4": 1.0,
    "returning_vs_vllm": 3.0,
}
CEILINGS = {
    "memory_64_overhead": 0.10,
    "int8_linear_memory": 0.27,
    "int8_metric_loss": 0.01,
    "swap_ms_p99": 100,
    "failed": 0,
    "mixed": 0,
    "adapter_vs_full_memory": 0.75,
    "together_4_vs_side_by_side_memory": 0.35,
    "lora_share_of_base": 0.03,
    "two_processes_loss_difference": 1e-3,
    "two_processes_auc_difference": 0.01,
    "p99_vs_median": 3,
    "p99_vs_median_evenly_spaced": 3,
    "memory_growth": 0.02,
    "restart_to_ready_max": 15,
    "returning_memory": 1.05,
    "returning_growth": 0.02,
}
KINDS = ("ratios", "counts", "seconds")
SPEED = {
    "training": "What an adapter costs to train",
    "inference": "Many adapters on one base",
    "serving": "The service",
    "peers": "Beside other libraries",
    "scaling": "How cost grows",
    "registry": "The registry",
    "returning": "Users who come back",
}

BESIDE = ("fused_vs_peft_throughput", "together_4_vs_one_after_the_other", "bfloat16_vs_float32_throughput")
"""Figures without an aim that docs/benchmarks.md shows as well."""

TITLES = {
    "baselines": "Quality beside strong baselines",
    "adapter_vs_full": "Adapter against full fine-tuning",
    "adapter_vs_full_seeds": "Adapter against full fine-tuning, several seeds",
    "adapter_vs_full_all": "Adapter against full fine-tuning, all events",
    "cold_items": "Items that training hardly knows",
    "ablation": "What each item feature is worth",
    "ads": "Ads",
}


def load(out: Path) -> dict[str, dict[str, Any]]:
    """Load each benchmark's figures with its command, commit and seconds, those run on their own too."""
    found = {}
    for name in dict.fromkeys([*TITLES, *SUITE]):
        figures, note = out / f"{name}.json", out / f"{name}.run.json"
        if not figures.exists() and not note.exists():
            continue
        held = json.loads(figures.read_text()) if figures.exists() else {}
        commands = held.get("commands", [f"python benchmarks/{name}.py"])
        alone = {"command": "; ".join(commands), "commit": held.get("commit", ""), "profile": "by itself", "exit_code": 0}
        found[name] = (json.loads(note.read_text()) if note.exists() else alone) | {"figures": held}
    return found


def rows(found: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """List ratios and counts beside their aims."""
    table = []
    for name, entry in found.items():
        figures = entry["figures"]
        measured = {key: value for kind in KINDS if isinstance(figures.get(kind), dict) for key, value in figures[kind].items()}
        for key, value in measured.items():
            if not isinstance(value, int | float):
                continue
            better, aim = ("at most", CEILINGS[key]) if key in CEILINGS else ("at least", BARS.get(key))
            aim = None if entry.get("profile") == "quick" else aim  # quick ones have other depths than the aims
            met = None if aim is None else (value <= aim if better == "at most" else value >= aim)
            table.append(
                {"benchmark": name, "figure": key, "words": worded(key), "value": value, "aim": aim, "better": better, "met": met}
            )
    return table


def plots_of(name: str, figures: dict[str, Any]) -> dict[str, Any]:
    """Return the plots shown below a benchmark's tables, by caption."""
    if name in ("baselines", "ads"):
        return methods(figures)
    if name == "adapter_vs_full" and figures:
        memory = copies(figures)
        return parameters(figures) | ({"memory of N tasks": memory} if memory else {})
    return {}


def methods(figures: dict[str, Any]) -> dict[str, Any]:
    """A plot of methods for each task."""
    plots = {}
    for task, found in figures.get("tasks", {}).items():
        metric = next(iter(next(iter(found["methods"].values()))["metrics"]))
        values = {name: (m["metrics"][metric]["value"], m["metrics"][metric]["interval"]) for name, m in found["methods"].items()}
        plots[f"{task}: {metric}, 95 % intervals"] = intervals(values, metric)
    return plots


def parameters(figures: dict[str, Any]) -> dict[str, Any]:
    """Quality against trained parameters, one plot for each task."""
    plots = {}
    for task, ways in figures.get("tasks", {}).items():
        figure, axes = figure_of(5.2, 3.2)
        for way, row in ways.items():
            low, high = row["test"]["interval"]
            x = max(row["trained_parameters"] + row["head_parameters"], 1)
            colour = INK if way == "full" else ACCENT
            axes.plot([x, x], [low, high], color=colour, alpha=0.4)
            axes.plot(x, row["test"]["value"], "o", color=colour)
            axes.annotate(way, (x, row["test"]["value"]), (5, 4), textcoords="offset points", fontsize=8, color=colour)
        axes.set_xscale("log")
        axes.set_xlabel("trained parameters", fontsize=8, color=INK)
        axes.set_ylabel(next(iter(ways.values()))["test"]["metric"], fontsize=8, color=INK)
        plots[f"{task}: quality against trained parameters"] = svg_of(figure)
    return plots


def copies(figures: dict[str, Any], most: int = 20) -> Any:
    """Memory of N tasks: N full models against one base and N adapters."""
    ways = next(iter(figures.get("tasks", {}).values()), {})
    if not {"full", "lora_8"} <= ways.keys():
        return None
    whole, own = (size / 2**20 for size in (4 * ways["full"]["trained_parameters"], ways["lora_8"]["bytes"]))
    figure, axes = figure_of(5.2, 2.6)
    tasks = list(range(1, most + 1))
    axes.plot(tasks, [n * whole for n in tasks], color=REST, label="N full models")
    axes.plot(tasks, [whole + n * own for n in tasks], color=ACCENT, label="one base and N adapters")
    axes.set_xlabel("tasks", fontsize=8, color=INK)
    axes.set_ylabel("MiB", fontsize=8, color=INK)
    axes.legend(loc="best", frameon=False, fontsize=8)
    return svg_of(figure)


def growth(figures: dict[str, Any]) -> dict[str, Any]:
    """Seconds against size, both in logarithms."""
    plots = {}
    for part, found in figures.items():
        if not isinstance(found, dict) or "exponent" not in found:
            continue
        figure, axes = figure_of(3.6, 2.4)
        axes.loglog(found["sizes"], found["seconds"], "o-", color=ACCENT)
        axes.set_title(f"{part}: size^{found['exponent']:.2f}", fontsize=9, color=INK)
        axes.set_ylabel("seconds", fontsize=8, color=INK)
        plots[part] = svg_of(figure)
    return plots


def failed_peers(figures: dict[str, Any]) -> list[tuple[str, str, str]]:
    """List peers that could not run: the part, the peer, the error."""
    return [(part, peer, error) for part, found in figures.get("errors", {}).items() for peer, error in found.items()]


def write_report(out: Path) -> Path:
    """Write the page and the Markdown summary beside it."""
    found = load(out)
    table = rows(found)
    figures = {name: entry["figures"] for name, entry in found.items()}
    page = render(
        "bench.html",
        TEMPLATES,
        found=found,
        table=table,
        titles=TITLES,
        growth=growth(figures.get("scaling", {})),
        quality={name: tables(name, own) for name, own in figures.items()},
        plots={name: plots_of(name, own) for name, own in figures.items()},
        absent=failed_peers(figures.get("peers", {})),
        peers=figures.get("peers", {}),
    )
    (out / "report.html").write_text(page, encoding="utf-8")
    (out / "summary.md").write_text(summary(found, table), encoding="utf-8")
    (out / "tables.md").write_text(whole(found), encoding="utf-8")
    return out / "report.html"


def summary(found: dict[str, dict[str, Any]], table: list[dict[str, Any]]) -> str:
    """Tables for docs/benchmarks.md, each after its mark: missed aims first, the command under each."""
    parts: dict[str, list[str]] = {}
    for name, entry in found.items():
        command = f"Command: `{entry['command']}`"
        cpu = entry["figures"].get("environment", {}).get("processor")
        where = f"{command} (on {cpu})" if cpu else command
        shown = (row for row in table if row["benchmark"] == name and (row["aim"] is not None or row["figure"] in BESIDE))
        own = sorted(shown, key=lambda row: row["met"] is not False)
        lines = [f"{peer} could not run in `{part}`: {error}" for part, peer, error in failed_peers(entry["figures"])]
        if own:
            lines += [f"**{SPEED.get(name, name)}.** Ratios unless noted; medians of alternating rounds.", ""]
            lines += ["| figure | measured | aim |", "|---|---|---|", *map(speed_row, own), "", where]
        if lines:
            parts[name] = lines
        for short in brief(name, entry["figures"]):
            parts[f"{name}: {short.title}"] = [short.markdown(), command]
    return "".join(f"{mark(key)}\n" + "\n".join(lines) + "\n\n" for key, lines in parts.items())


def speed_row(row: dict[str, Any]) -> str:
    """A figure beside its aim."""
    aim = "" if row["aim"] is None else f"{row['better']} {row['aim']:g}{'' if row['met'] else ' (missed)'}"
    return f"| {row['words']} | {row['value']:.3g} | {aim} |"


def whole(found: dict[str, dict[str, Any]]) -> str:
    """Every table of quality as Markdown, for docs/experiments.md."""
    parts = []
    for name, entry in found.items():
        made = tables(name, entry["figures"])
        if made:
            parts += [f"`{entry['command']}`\n", *(one.markdown() for one in made)]
    return "\n".join(parts)
