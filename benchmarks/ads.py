"""Ads: one adapter on Open Bandit, its probabilities beside baselines, and the off-policy value of ranking by it.

    python benchmarks/ads.py --json build/bench/ads.json [--set train.epochs=2 …] [--resamples 1000]

Trains recipes/ads.yaml and reads the test part once. `tasks.click`: AUC, log loss and ECE of the adapter, of shares and of
a logistic regression on the same columns (its penalty by validation log loss), with user-bootstrap intervals (a user is one
impression here) and paired differences; and what ECE would be if the adapter's probabilities were perfect. `off_policy`: for the
test rounds of each logging policy the value, clicks per impression, of ranking greedily by the adapter, of its softmax, of the
logistic regression and of chance (`genre.evaluation.off_policy`; the reward model of `dr` is the logistic regression, which has
not seen the test part). The log is small: each value comes with the number of clicks it rests on.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import genre
from genre.data.splits import TEST, TRAIN, VALID, Split, split
from genre.evaluation.baselines import feedback_baselines
from genre.evaluation.metrics import ece, log_loss, metric, paired_bootstrap
from genre.evaluation.off_policy import CLIP, ESTIMATORS, Rounds, estimate
from genre.evaluation.protocol import protocol_line
from genre.evaluation.targets import Targets, evaluate_feedback
from genre.jobs.loading import open_log
from genre.progress import Reporter
from suite import keep_figures

RECIPE = Path(__file__).parents[1] / "recipes" / "ads.yaml"
PERSON = ("user_feature_0", "user_feature_1", "user_feature_2", "user_feature_3", "past_clicks", "position")
ITEM = ("item_id", "item_feature_1", "item_feature_2", "item_feature_3")
PENALTIES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
METRICS = ("log_loss", "auc", "ece")


class Regression:
    """A logistic regression without interactions: the logit of a pair is a user's and position's plus an item's."""

    def __init__(self, log: genre.Interactions, part: np.ndarray, label: np.ndarray) -> None:
        from scipy import sparse
        from sklearn.linear_model import LogisticRegression
        from sklearn.preprocessing import OneHotEncoder

        assert log.users is not None
        people = log.users.select(pl.col(PERSON).cast(pl.String)).to_numpy()
        items = log.catalogue.frame.select(pl.col(ITEM).cast(pl.String)).to_numpy()
        train = part == TRAIN
        left = OneHotEncoder(handle_unknown="ignore").fit(people[log.user_codes[train]])
        right = OneHotEncoder(handle_unknown="ignore").fit(items)
        number = log.catalogue.frame["item_feature_0"].to_numpy()[:, None]
        of_person, of_item = left.transform(people), sparse.hstack([right.transform(items), number]).tocsr()
        pairs = sparse.hstack([of_person[log.user_codes], of_item[log.item_codes]]).tocsr()
        best = np.inf
        for penalty in PENALTIES:
            model = LogisticRegression(C=penalty, max_iter=2000).fit(pairs[train], label[train])
            loss = log_loss(label[part == VALID], model.predict_proba(pairs[part == VALID])[:, 1])
            if loss < best:
                best, self.penalty, weights = loss, penalty, model.coef_[0]
                self.person = of_person @ weights[: of_person.shape[1]] + model.intercept_[0]
                self.item = of_item @ weights[of_person.shape[1] :]

    def __call__(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Click probabilities of pairs of codes; the arrays broadcast."""
        return 1 / (1 + np.exp(-(self.person[users] + self.item[items])))


def position_mean(log: genre.Interactions, part: np.ndarray, label: np.ndarray, found: Targets) -> np.ndarray:
    """The training clicks per impression of the target's position."""
    position, train = log.column("position").astype(np.int64), part == TRAIN
    means = np.bincount(position[train], weights=label[train]) / np.maximum(np.bincount(position[train]), 1)
    return means[position[found.event]]


def quality(found: Targets, methods: dict[str, np.ndarray]) -> dict[str, Any]:
    """Compute every method's figures and its paired difference from the adapter."""
    table: dict[str, Any] = {}
    for name, scores in methods.items():
        table[name] = {"metrics": {key: one.as_dict() for key, one in evaluate_feedback(METRICS, found, scores).items()}}
        if name != "adapter":
            table[name]["adapter_better_by"] = {}
            for key in METRICS:
                pair = (methods["adapter"], scores) if metric(key).direction == "higher" else (scores, methods["adapter"])
                table[name]["adapter_better_by"][key] = paired_bootstrap(key, found.user, found.label, *pair).as_dict()
    return table


def chance_ece(scores: np.ndarray, *, draws: int = 500, seed: int = 0) -> dict[str, Any]:
    """The ECE of labels drawn from the scores themselves, that is of perfect probabilities."""
    draw = np.random.default_rng(seed)
    values = [ece((draw.random(len(scores)) < scores).astype(float), scores) for _ in range(draws)]
    return {"mean": float(np.mean(values)), "interval": [float(value) for value in np.quantile(values, [0.025, 0.975])]}


def adapter_table(ref: str, registry: genre.Registry, log: genre.Interactions, base: genre.Base, users: np.ndarray) -> np.ndarray:
    """Click probabilities [n, N] of every item for some users, by the engine; users equal in all columns are scored once."""
    assert log.users is not None
    columns = log.users.select(PERSON)[users]
    alike = columns.unique(maintain_order=True).with_row_index("place")
    place = columns.with_row_index("row").join(alike, on=PERSON, how="left").sort("row")["place"].to_numpy()
    engine = genre.Engine(base, registry, lanes=1, data=log)
    ids = log.catalogue.item_ids
    requests = [genre.Request(ref, history=[], user=row, candidates=ids) for row in alike.drop("place").to_dicts()]
    try:
        answers = engine.score(requests)
    finally:
        engine.close()
    failed = [answer.error for answer in answers if answer.error]
    if failed:
        raise RuntimeError(f"the engine refused {len(failed)} requests, such as: {failed[0]}")
    return np.array([[item.score for item in answer.results] for answer in answers])[place]


def uniform(candidates: np.ndarray) -> np.ndarray:
    """[n, K] probabilities, the same for every candidate of a round."""
    return candidates / candidates.sum(1, keepdims=True)


def greedy(scores: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """[n, K] the best candidate of each round, the first of equal ones."""
    return np.eye(candidates.shape[1])[np.where(candidates, scores, -np.inf).argmax(1)]


def softmax(logits: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """[n, K] π(a|x) ∝ exp(z_a) over the candidates."""
    inside = np.where(candidates, logits, -np.inf)
    raised = np.exp(inside - inside.max(1, keepdims=True))
    return raised / raised.sum(1, keepdims=True)


def choices_of(
    log: genre.Interactions, events: np.ndarray, members: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What could be shown in test events, the items of their campaign.

    Returns:
        [n] the place of what was shown, [n, K] the item code of each place, [n, K] bool which places there are.
    """
    campaign = log.column("campaign")[events]
    width = max(map(len, members.values()))
    codes, candidates = np.zeros((len(events), width), dtype=np.int64), np.zeros((len(events), width), dtype=bool)
    for name, own in members.items():
        rows = np.flatnonzero(campaign == name)
        codes[rows, : len(own)], candidates[rows, : len(own)] = own, True
    action = ((codes == log.item_codes[events][:, None]) & candidates).argmax(1)
    return action, codes, candidates


def off_policy(
    log: genre.Interactions, found: Targets, table: np.ndarray, regression: Regression, resamples: int
) -> dict[str, Any]:
    """Estimate the value of the other policies on each logging policy's test rounds."""
    campaigns, items = log.column("campaign"), log.catalogue.column("campaign").to_numpy()
    members = {str(name): np.flatnonzero(items == name) for name in np.unique(campaigns.astype(str))}
    policy, result = log.column("policy")[found.event], {}
    for name in np.unique(policy.astype(str)):
        mine = np.flatnonzero(policy == name)
        events = found.event[mine]
        action, codes, candidates = choices_of(log, events, members)
        scores = np.take_along_axis(table[mine], codes, 1)
        expected = regression(found.user[mine][:, None], codes)
        policies = {
            "adapter_greedy": greedy(scores, candidates),
            "adapter_softmax": softmax(np.log(scores) - np.log1p(-scores), candidates),
            "regression_greedy": greedy(expected, candidates),
            "uniform": uniform(candidates),
        }
        shown = log.column("click")[events], log.column("propensity")[events]
        result[str(name)] = {
            other: estimate(Rounds.of_choices(action, *shown, candidates, chances, expected), resamples=resamples)
            for other, chances in policies.items()
        }
    return result


def train(recipe: genre.Recipe, log: genre.Interactions, base: genre.Base, folder: Path) -> tuple[Any, str, genre.Registry]:
    """Train the recipe, or resume it; return the run and its published version."""
    registry = genre.Registry(folder / "registry")
    resume = (folder / "run" / "checkpoints" / "last.pt").exists()
    run = genre.train(
        recipe, log=log, base=base, registry=registry, folder=folder / "run", resume=resume, reporter=Reporter.for_terminal()
    )
    return run, registry.publish(run).ref, registry


def measure(recipe: genre.Recipe, log: genre.Interactions, base: genre.Base, folder: Path, resamples: int) -> dict[str, Any]:
    """Compute all figures of the benchmark from one run."""
    run, ref, registry = train(recipe, log, base, folder)
    task = recipe.tasks[0]
    chosen: Split = split(log, recipe.data.split)
    label = task.labels({name: log.column(name) for name in log.event_columns})
    predicted = pl.read_parquet(run.root / "predictions.parquet")
    events = predicted["event"].to_numpy()
    found = Targets(events, log.user_codes[events], log.item_codes[events], label[events])
    assert (np.asarray(chosen.part)[events] == TEST).all()
    regression = Regression(log, chosen.part, label)
    methods = {
        "adapter": predicted["score"].to_numpy(),
        "prior": np.full(len(found), label[chosen.part == TRAIN].mean()),
        "item_mean": feedback_baselines(log, chosen, label, found, binary=True)["item_mean"],
        "position_mean": position_mean(log, chosen.part, label, found),
        "logistic_regression": regression(found.user, found.item),
    }
    table = adapter_table(ref, registry, log, base, found.user)
    apart = float(np.abs(table[np.arange(len(found)), found.item] - methods["adapter"]).max())
    if apart > 1e-3:
        raise RuntimeError(f"the engine and the evaluation disagree: got {apart:g} between two probabilities")
    return {
        "tasks": {
            task.name: {
                "protocol": f"{protocol_line(recipe, log, task)}; a user is one impression",
                "n": len(found),
                "users": len(np.unique(found.user)),
                "clicks": int(label[events].sum()),
                "clicks_trained_on": int(label[chosen.part == TRAIN].sum()),
                "methods": quality(found, methods),
                "adapter_ece_if_perfect": chance_ece(methods["adapter"]),
                "regression_penalty": regression.penalty,
                "validation": json.loads((run.root / "metrics.json").read_text())["validation"],
                "cost": run.manifest.cost.model_dump(),
            }
        },
        "off_policy": off_policy(log, found, table, regression, resamples),
        "engine_and_evaluation_apart": apart,
    }


def show(result: dict[str, Any]) -> None:
    """Tables as Markdown."""
    for name, task in result["tasks"].items():
        print(f"\n{name}: {task['n']:,} test impressions, {task['clicks']} clicks\n\n| method | " + " | ".join(METRICS) + " |")
        print("|---" * (len(METRICS) + 1) + "|")
        for method, entry in task["methods"].items():
            print(f"| {method.replace('_', ' ')} | " + " | ".join(_text(entry["metrics"][key]) for key in METRICS) + " |")
        chance = task["adapter_ece_if_perfect"]
        print(f"\nECE of the adapter's scores were they perfect: {_text({'value': chance['mean'], **chance})}")
    for name, found in result["off_policy"].items():
        own = next(iter(found.values()))
        print(f"\nlogged by {name}: {own['lists']:,} rounds, {own['rewards']:g} clicks, value {_text(own['logging'])}\n")
        print("| policy | IPS | SNIPS | DR | switch-DR | effective rounds | clicks with weight | clipped |\n" + "|---" * 8 + "|")
        for policy, entry in found.items():
            weights, values = entry["weights"], " | ".join(_text(entry["estimates"][way]) for way in ESTIMATORS)
            few = " (few)" if weights["few_rewards"] else ""
            rests = f"{weights['effective_lists']:,.0f} | {weights['rewards_with_weight']}{few} | {weights['clipped']}"
            print(f"| {policy.replace('_', ' ')} | {values} | {rests} |")


def _text(figure: dict[str, Any]) -> str:
    if figure["value"] is None:
        return "–"
    interval = figure["interval"]
    return f"{figure['value']:.4f}" + (f" [{interval[0]:.4f}, {interval[1]:.4f}]" if interval else "")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, default=Path("build/bench/ads.json"))
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE", help="as in genre train")
    parser.add_argument("--resamples", type=int, default=1000)
    options = parser.parse_args()
    if options.resamples < 1:
        parser.error(f"--resamples is too small: got {options.resamples}; expected 1 or more")
    recipe = genre.Recipe.read(RECIPE, ["data.path=open-bandit", *options.overrides])
    log = open_log(recipe.data.path)
    missing = [name for name in ("policy", "campaign", "position", "propensity", "click") if name not in log.event_columns]
    if missing:
        parser.error(f"the log has no column {missing[0]!r}, which off-policy evaluation needs")
    base = genre.Base.load(recipe.base.name, depth=recipe.base.depth)
    result = {"clip": CLIP, "resamples": options.resamples}
    result |= measure(recipe, log, base, options.json.parent / "ads-run", options.resamples)
    keep_figures(options.json, result)
    show(result)


if __name__ == "__main__":
    main()
