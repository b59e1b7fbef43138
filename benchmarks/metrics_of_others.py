"""Ties, precision of scores and edge cases in the ranking metrics of other libraries, beside ours.

    python benchmarks/metrics_of_others.py

Prints a Markdown table of the libraries that are installed. All at once, in an environment of their own since RecTools asks for
NumPy below 2:

    pip install ranx ir_measures pytrec_eval-terrier torchmetrics rectools scikit-learn
    pip install tensorboard colorlog colorama texttable thop
    pip install --no-deps recbole

Six items, one of them relevant. `ties` is the reciprocal rank (or NDCG) of an item that is first, third and last in the file
where all scores are equal. `near` is that of the best item, with score 16777217, where the next has 16777216, equal in
float32; the lower of two orders in the file. `minus 10` is a perfect ranking whose scores are all negative. Then three
edges: precision (or NDCG) at 10 of a perfect list of six, the mean over a perfect query and one without a relevant item, and
over a perfect user and one without a list.
"""

import argparse
import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np

ITEMS = [f"i{row}" for row in range(6)]
EQUAL = [1.0] * 6
DESCENDING = [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]
NEAR = [16777216.0, 16777217.0, 3.0, 2.0, 1.0, 0.0]

Reciprocal = Callable[[list[float], int], float]
"""Scores of the six items and the row of the relevant one, to a reciprocal rank (or NDCG)."""

Edges = list[Callable[[], float] | None]
"""A cut-off above the list, a query without a relevant item, a user without a list; None where the interface has no such case."""

Library = tuple[dict[str, Reciprocal], Edges]


def _judged(row: int, second: int | None = None) -> dict[str, dict[str, int]]:
    """Relevance of the six items, and of the only item of a second query."""
    one = {"q": {item: int(at == row) for at, item in enumerate(ITEMS)}}
    return one if second is None else one | {"p": {ITEMS[0]: second}}


def _run(scores: list[float], *, second: bool = False) -> dict[str, dict[str, float]]:
    """Scores of the six items, and of the only item of a second query."""
    one = {"q": dict(zip(ITEMS, scores, strict=True))}
    return one | {"p": {ITEMS[0]: 1.0}} if second else one


def _labels(row: int) -> list[int]:
    return [int(at == row) for at in range(6)]


def ours() -> Library:
    """Return our MRR and NDCG over a catalogue, and those within impressions."""
    from genre.evaluation.metrics.impressions import impression_mrr, impression_ndcg
    from genre.evaluation.metrics.ranking import mid_ranks, mrr, ndcg

    def of_ranks(metric: Any) -> Reciprocal:
        return lambda scores, row: metric(mid_ranks(np.array([scores]), np.array([row])), 6)

    return {
        "mrr@k": of_ranks(mrr),
        "ndcg@k": of_ranks(ndcg),
        "impression_mrr": lambda scores, row: impression_mrr(_labels(row), scores, [0] * 6),
        "impression_ndcg@k": lambda scores, row: impression_ndcg(_labels(row), scores, [0] * 6, 6),
    }, [
        lambda: impression_ndcg(_labels(0), DESCENDING, [0] * 6, 10),
        lambda: impression_mrr([1, 0, 0, 0], [2, 1, 2, 1], [0, 0, 1, 1]),
        None,
    ]


def ranx() -> Library:
    """Return ranx' reciprocal rank."""
    from ranx import Qrels, Run, evaluate

    def relevant(second: int | None = None) -> Any:
        return Qrels(_judged(0, second))

    return {"mrr": lambda scores, row: evaluate(Qrels({"q": {ITEMS[row]: 1}}), Run(_run(scores)), "mrr")}, [
        lambda: evaluate(relevant(), Run(_run(DESCENDING)), "precision@10"),
        lambda: evaluate(relevant(0), Run(_run(DESCENDING, second=True)), "mrr"),
        lambda: evaluate(relevant(1), Run(_run(DESCENDING)), "mrr"),
    ]


def trec_eval() -> Library:
    """Return trec_eval's reciprocal rank, through pytrec_eval."""
    from pytrec_eval import RelevanceEvaluator

    def mean(judged: Any, run: Any, measure: str = "recip_rank") -> float:
        found = RelevanceEvaluator(judged, {measure}).evaluate(run)
        return float(np.mean([next(iter(values.values())) for values in found.values()]))

    return {"recip_rank": lambda scores, row: mean(_judged(row), _run(scores))}, [
        lambda: mean(_judged(0), _run(DESCENDING), "P_10"),
        lambda: mean(_judged(0, 0), _run(DESCENDING, second=True)),
        lambda: mean(_judged(0, 1), _run(DESCENDING)),
    ]


def ir_measures() -> Library:
    """Return RR and RR@10 of ir_measures, which come from two tools."""
    from ir_measures import RR, P, calc_aggregate

    def mean(measure: Any, judged: Any, run: Any) -> float:
        return float(calc_aggregate([measure], judged, run)[measure])

    return {
        "RR": lambda scores, row: mean(RR, _judged(row), _run(scores)),
        "RR@10": lambda scores, row: mean(RR @ 10, _judged(row), _run(scores)),
    }, [
        lambda: mean(P @ 10, _judged(0), _run(DESCENDING)),
        lambda: mean(RR, _judged(0, 0), _run(DESCENDING, second=True)),
        lambda: mean(RR, _judged(0, 1), _run(DESCENDING)),
    ]


def torchmetrics() -> Library:
    """Return torchmetrics' reciprocal rank and NDCG of retrieval."""
    import torch
    from torchmetrics import retrieval

    def measure(metric: Any, scores: list[float], relevant: list[int], queries: list[int]) -> float:
        metric.update(torch.tensor(scores, dtype=torch.float64), torch.tensor(relevant), indexes=torch.tensor(queries))
        return float(metric.compute())

    return {
        "RetrievalMRR": lambda scores, row: measure(retrieval.RetrievalMRR(), scores, _labels(row), [0] * 6),
        "RetrievalNormalizedDCG": lambda scores, row: measure(retrieval.RetrievalNormalizedDCG(), scores, _labels(row), [0] * 6),
    }, [
        lambda: measure(retrieval.RetrievalPrecision(top_k=10), DESCENDING, _labels(0), [0] * 6),
        lambda: measure(retrieval.RetrievalMRR(), [2.0, 1.0, 2.0, 1.0], [1, 0, 0, 0], [0, 0, 1, 1]),
        None,
    ]


def recbole() -> Library:
    """Return RecBole's MRR of a full ranking, whose column 0 is padding, with float32 and float64 scores."""
    import torch
    from recbole.evaluator import Collector, Evaluator

    vars(np).setdefault("float", float)  # RecBole's MRR, MAP and NDCG name it; NumPy 1.24 took it away

    class Settings(dict[str, Any]):
        def __missing__(self, key: str) -> None:
            return None

    def measure(scores: list[list[float]], relevant: dict[int, int], name: str, k: int, dtype: Any = torch.float32) -> float:
        settings = Settings(metrics=[name], topk=[k], metric_decimal_place=6, eval_args={"mode": "full"}, device="cpu")
        collector = Collector(settings)
        padded = torch.tensor([[-torch.inf, *row] for row in scores], dtype=dtype)
        items = torch.tensor(list(relevant.values())) + 1
        collector.eval_batch_collect(padded, None, torch.tensor(list(relevant)), items)
        return float(Evaluator(settings).evaluate(collector.get_data_struct())[f"{name.lower()}@{k}"])

    return {
        "MRR, float32": lambda scores, row: measure([scores], {0: row}, "MRR", 6),
        "MRR, float64": lambda scores, row: measure([scores], {0: row}, "MRR", 6, torch.float64),
    }, [
        lambda: measure([DESCENDING], {0: 0}, "Precision", 10),
        lambda: measure([DESCENDING] * 2, {0: 0}, "Recall", 6),
        None,
    ]


def rectools() -> Library:
    """Return RecTools' MRR and NDCG, on ranks from a stable sort: it takes no scores."""
    import pandas
    from rectools import Columns
    from rectools.metrics import MRR, NDCG, Precision

    def lists(orders: dict[int, Any]) -> Any:
        users = [pandas.DataFrame({Columns.User: user, Columns.Item: order}) for user, order in orders.items()]
        return pandas.concat([user.assign(**{Columns.Rank: range(1, len(user) + 1)}) for user in users])

    def held_out(items: dict[int, int]) -> Any:
        return pandas.DataFrame({Columns.User: items.keys(), Columns.Item: items.values()})

    def measured(metric: Any) -> Reciprocal:
        return lambda scores, row: float(
            metric.calc(lists({1: np.argsort(-np.array(scores), kind="stable")}), held_out({1: row}))
        )

    return {
        "MRR": measured(MRR(6)),
        "NDCG": measured(NDCG(6)),
        "NDCG, divide_by_achievable": measured(NDCG(6, divide_by_achievable=True)),
    }, [
        lambda: Precision(10).calc(lists({1: range(6)}), held_out({1: 0})),
        lambda: MRR(6).calc(lists({1: range(6), 2: range(6)}), held_out({1: 0})),
        lambda: MRR(6).calc(lists({1: range(6)}), held_out({1: 0, 2: 0})),
    ]


def scikit_learn() -> Library:
    """Return scikit-learn's NDCG, and its ranking precision, which is the reciprocal rank of one relevant item."""
    from sklearn.metrics import label_ranking_average_precision_score as precision
    from sklearn.metrics import ndcg_score

    return {
        "label_ranking_average_precision_score": lambda scores, row: precision([_labels(row)], [scores]),
        "ndcg_score": lambda scores, row: ndcg_score([_labels(row)], [scores]),
    }, [
        lambda: ndcg_score([_labels(0)], [DESCENDING], k=10),
        lambda: ndcg_score([[1, 0], [0, 0]], [[2, 1], [2, 1]]),
        None,
    ]


LIBRARIES = {
    "genre-adapters": ours,
    "ranx": ranx,
    "pytrec_eval-terrier": trec_eval,
    "ir_measures": ir_measures,
    "torchmetrics": torchmetrics,
    "recbole": recbole,
    "rectools": rectools,
    "scikit-learn": scikit_learn,
}


def _shown(value: Callable[[], float] | None) -> str:
    if value is None:
        return "–"
    try:
        return f"{float(value()):.3f}"
    except Exception as error:  # what a library raises is its answer
        return type(error).__name__


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    warnings.simplefilter("ignore")
    print("| library | metric | ties: first, third, last | near | minus 10 | k above the list | none relevant | no list |")
    print("|---|---|---|---|---|---|---|---|")
    for name, build in LIBRARIES.items():
        try:
            metrics, edges = build()
        except ImportError as error:
            print(f"| {name} | not installed: {error.name} |")
            continue
        title = name if build is ours else f"{name} {version(name)}"
        cells = [_shown(edge) for edge in edges]
        for metric, value in metrics.items():
            ties = " ".join(f"{value(EQUAL, row):.3f}" for row in (0, 2, 5))
            near = min(value(NEAR, 1), value([NEAR[1], NEAR[0], *NEAR[2:]], 0))
            negative = value([score - 10 for score in DESCENDING], 0)
            print(f"| {title} | {metric} | {ties} | {near:.3f} | {negative:.3f} | {' | '.join(cells)} |")
            title, cells = "", [""] * len(edges)


if __name__ == "__main__":
    main()
