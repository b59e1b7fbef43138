"""The demo on real data: three task adapters on one frozen base, then all three in one engine.

    python benchmarks/demo.py --out build/demo

Prepares ML-100K and SmolLM2-135M, trains `next_item` (which fits the behaviour encoder), `like` and `rating`, publishes them
in OUT/registry, loads them into one engine, recommends for a real user, and writes OUT/report.json and OUT/report.html.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

import genre
from genre.data.packaged import sources
from genre.data.sequences.batches import collate
from genre.engine import Engine, Request, Response, Scored
from genre.engine.versions import read_adapter
from genre.files import write_text
from genre.jobs.folders import environment
from genre.jobs.loading import restore
from genre.jobs.report.figures import curve, intervals, render
from genre.modules.base.packaged import prepare_base
from genre.progress import Reporter
from genre.training.reporting import read_log

RECIPES = Path(__file__).parent.parent / "recipes"
TEMPLATES = Path(__file__).parent / "templates"
USER = "71"
"""Of 20 to 60 events, with scores of `like` and `rating` near those of most users, and spread."""

EXPLANATION = (
    "next_item gives the probability that a film is the next one that this user rates; like (the probability of more than three "
    "stars) and rating say what they would think of it. People also watch what they then do not like, so the order differs."
)
TASKS = {"next_item": "ndcg@10", "like": "auc", "rating": "rmse"}
OVERRIDES = {
    "next_item": ["train.epochs=2", "train.dropout=0.2", "data.max_events=60"],
    "like": ["train.epochs=1", "train.dropout=0.1"],
    "rating": ["train.epochs=1", "train.dropout=0.1"],
}
REDUCED = [
    "depth: the first 4 of the base's 30 layers",
    "events: rows of at most 60 events of a user for next_item, where the recipe asks for 100",
    "epochs: 2 for next_item, 1 each for like and rating, where the recipes ask for 8, 3 and 3",
]


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("build/demo"))
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="override a key in all three recipes")
    options = parser.parse_args()
    begun = time.perf_counter()
    reporter = Reporter.for_terminal()
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)

    reporter.line("preparing data and base")
    log = genre.Interactions.read(sources.prepare_data("ml-100k", on_step=reporter.line))
    prepare_base("smollm2-135m", on_step=reporter.line)
    recipes = {name: genre.Recipe.read(RECIPES / f"{name}.yaml", [*OVERRIDES[name], *options.set]) for name in TASKS}
    first = recipes["next_item"].base
    base = genre.Base.load(first.name, quantization=first.quantization, depth=first.depth)
    registry = genre.Registry(out / "registry")
    runs = {}
    for number, (name, recipe) in enumerate(recipes.items(), 1):
        reporter.line(f"\n[{number}/3] training {name}: {log.info.name}, base {base.name}, {base.depth}/{base.full_depth} layers")
        folder = out / "runs" / name / time.strftime("%Y%m%d-%H%M%S")
        runs[name] = genre.train(recipe, log=log, base=base, registry=registry, folder=folder, reporter=reporter)
        version = registry.publish(runs[name], alias="production")
        reporter.line(f"published {version.ref}")

    reporter.line("\nloading all three into one engine")
    requests = check_requests(log)
    with Engine(base, registry, lanes=4, data=log) as engine:
        mixed = engine.score(requests)
        shown = recommend(engine, log)
        resident = engine.resident()
    difference = max_difference(registry, log, base, requests, mixed)
    report = make_report(runs, base, resident, difference, shown, time.perf_counter() - begun)
    write_text(out / "report.json", json.dumps(report, indent=2) + "\n")
    write_text(out / "report.html", make_page(report, runs))
    print_summary(report, out)


def check_requests(log: genre.Interactions) -> list[Request]:
    """A batch of 24 rows in which the three tasks alternate."""
    users = [user for user in log.user_ids if 20 <= len(log.history(user)) <= 60][:8]
    candidates = log.catalogue.item_ids[:40:4]
    return [
        Request(f"{task}@production", user_id=user, candidates=candidates, id=f"{task}/{user}")
        for user in users
        for task in TASKS
    ]


@torch.no_grad()
def max_difference(
    registry: genre.Registry, log: genre.Interactions, base: genre.Base, requests: list[Request], mixed: list[Response]
) -> float:
    """Largest difference between the mixed batch and each adapter run alone, by PEFT-style layers and full prompts."""
    worst = 0.0
    for task in TASKS:
        loaded = read_adapter(registry, f"{task}@production", base)
        model, builder, _ = restore(loaded, log, base)
        try:
            for request, response in zip(requests, mixed, strict=True):
                if request.adapter.startswith(task):
                    alone, results = score_alone(model, builder, log, task, request), scored(response)
                    worst = max(worst, max(abs(a - b.score) for a, b in zip(alone, results, strict=True)))
        finally:
            model.release()
    return worst


def score_alone(model: Any, builder: Any, log: genre.Interactions, task: str, request: Request) -> list[float]:
    """One request through one adapter; every candidate of a feedback task is a full sequence of its own."""
    user = log.user_code(request.user_id or "")
    start, end = int(log.user_offsets[user]), int(log.user_offsets[user + 1])
    start = max(start, end - builder.layout.max_events + 1)
    items, feedback = list(log.item_codes[start:end]), list(builder.feedback[start:end])
    codes = log.catalogue.codes([str(candidate) for candidate in request.candidates or ()])
    events = np.array([-1] * len(items) + [0])

    def last(code: int) -> torch.Tensor:
        row = builder.layout.build(builder.prefix(user), np.array([*items, code]), np.array([*feedback, 0]), events=events)
        slot = ("feedback", np.array([code])) if task == "next_item" else ("item", np.array([0.0]))
        batch = collate([row], {task: slot})
        return model.heads[task].score(model.output(task, model.hidden(batch), batch))[0]

    if task == "next_item":
        return [float(score) for score in last(int(codes[0]))[codes]]
    return [float(last(int(code))) for code in codes]


def scored(response: Response) -> tuple[Scored, ...]:
    """Return the items that answer a request."""
    return cast(tuple[Scored, ...], response.results)


def recommend(engine: Engine, log: genre.Interactions) -> dict[str, Any]:
    """Recommend ten films to one user by `next_item`, scored by `like` and `rating`, beside the films that the user liked."""
    best = engine.score([Request("next_item@production", user_id=USER, k=10)])[0]
    items = [each.item_id for each in scored(best)]
    like, rating = engine.score([Request(f"{task}@production", user_id=USER, candidates=items) for task in ("like", "rating")])
    titles = dict(zip(log.catalogue.item_ids, log.catalogue.titles(), strict=True))
    history = log.history(USER)
    liked = [titles[event["item_id"]] for event in history if event["rating"] == 5][-10:]
    rows = [
        {
            "title": titles[one.item_id],
            "next_item": one.score,
            "probability": one.probability,
            "like": two.score,
            "rating": three.score,
        }
        for one, two, three in zip(scored(best), scored(like), scored(rating), strict=True)
    ]
    return {"user": USER, "events": len(history), "liked": liked, "recommended": rows, "explanation": EXPLANATION}


def make_report(
    runs: dict[str, Any], base: genre.Base, resident: dict[str, str], difference: float, shown: dict[str, Any], seconds: float
) -> dict[str, Any]:
    """Build the content of report.json."""
    tasks, cost = {}, {}
    for name, metric in TASKS.items():
        run = runs[name]
        figure, others = run.metrics[name][metric], run.baselines[name]
        tasks[name] = {
            "metric": metric,
            "adapter": figure["value"],
            "interval": figure["interval"],
            "n": figure["n"],
            "protocol": run.manifest.protocol[name],
            "all": run.metrics[name],
            "baselines": {label: found[metric]["value"] for label, found in others.items()},
            "baseline_intervals": {label: found[metric]["interval"] for label, found in others.items()},
        }
        spent = run.manifest.cost
        cost[name] = {
            "seconds": spent.seconds,
            "tokens": spent.tokens,
            "tokens_per_second": spent.tokens / max(spent.seconds, 1e-9),
            "lora_params": spent.lora_params,
            "head_params": spent.head_params,
            "peak_memory_bytes": spent.peak_memory_bytes,
            "bytes": sum(file.stat().st_size for file in run.folder.iterdir()),
        }
    return {
        "tasks": tasks,
        "cost": cost,
        "base": {
            "name": base.name,
            "quantization": base.quantization,
            "depth": base.depth,
            "fingerprint": base.fingerprint,
            "params": sum(value.numel() for value in base.model.parameters()),
        },
        "engine": {"resident": len(resident), "adapters": resident, "max_abs_difference": difference},
        "recommendation": shown,
        "seconds": seconds,
        "reduced": REDUCED,
        "environment": environment(),
    }


def make_page(report: dict[str, Any], runs: dict[str, Any]) -> str:
    """Build the content of report.html."""
    plots = {
        name: intervals(
            {"adapter": (task["adapter"], task["interval"])}
            | {label: (value, task["baseline_intervals"][label]) for label, value in task["baselines"].items()},
            task["metric"],
        )
        for name, task in report["tasks"].items()
    }
    curves = {name: curve(read_log(run.root)) for name, run in runs.items()}
    return render("demo.html", TEMPLATES, report=report, plots=plots, curves=curves)


def print_summary(report: dict[str, Any], out: Path) -> None:
    """Print the summary of the demo."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=110)
    table = Table(title="three adapters on one base", title_justify="left")
    for column in ("task", "metric", "adapter", "95 % interval", "n", "baselines"):
        table.add_column(column)
    for name, task in report["tasks"].items():
        others = ", ".join(f"{label} {value:.4f}" for label, value in task["baselines"].items())
        low, high = task["interval"]
        table.add_row(name, task["metric"], f"{task['adapter']:.4f}", f"{low:.4f} – {high:.4f}", f"{task['n']:,}", others)
    console.print(table)
    shown = report["recommendation"]
    console.print(f"user {shown['user']} had given five stars to: {'; '.join(shown['liked'])}")
    table = Table(title="recommended by next_item, judged by like and rating", title_justify="left")
    for column in ("film", "next_item", "like", "rating"):
        table.add_column(column)
    for row in shown["recommended"]:
        table.add_row(row["title"], f"{row['probability']:.1%}", f"{row['like']:.0%}", f"{row['rating']:.2f}")
    console.print(table)
    console.print(shown["explanation"])
    console.print(
        f"{report['engine']['resident']} adapters on one base; largest difference of the mixed batch from one-adapter runs "
        f"{report['engine']['max_abs_difference']:.1e}; {report['seconds']:.0f} s in all"
    )
    console.print(f"reduced to fit: {'; '.join(report['reduced'])}")
    console.print(f"report: {out / 'report.json'}, {out / 'report.html'}")


if __name__ == "__main__":
    main()
