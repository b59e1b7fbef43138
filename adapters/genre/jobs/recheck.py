"""Measuring a published version again, so that a promotion need not believe its manifest.

Owns: the metrics of a version on data of the caller's, as a manifest that holds them. Ignores: baselines, bounds, aliases.

    measured = measure_again(registry, registry.resolve("like@candidate"), open_data("data/shop"))
    registry.promote("like@candidate", floor={"auc": 0.75}, measured={measured.digest: measured})
"""

from genre.data.dataset import Dataset
from genre.data.splits import PARTS
from genre.engine.versions import by_split, read_adapter
from genre.errors import ManifestError
from genre.jobs.evaluate import task_results
from genre.jobs.loading import load_base, restore
from genre.modules.base.base import Base
from genre.progress import Reporter
from genre.registry import Manifest, MetricValue, Registry, Version
from genre.training.prediction import predict


def measure_again(
    registry: Registry, version: Version, data: Dataset, base: Base | None = None, *, reporter: Reporter | None = None
) -> Manifest:
    """Evaluate a version on the test part of some data, under the split and the protocol that it was published with.

    Args:
        registry: Holds the version.
        version: It.
        data: A log or labelled texts: what it was evaluated on, or others that its publisher has not seen.
        base: Its base; by default found by the name in the manifest.
        reporter: Receives progress; by default nothing.

    Returns:
        Its manifest, with the metrics that were found and the digest of this data instead of its own.

    Raises:
        ManifestError: The version does not fit the base, or has no data.
        IntegrityError: It is damaged, or not signed by a trusted key where the registry requires that.
    """
    if (used := version.manifest.data) is None:
        raise ManifestError(f"{version.ref} does not say what it was evaluated on", expected="data in its manifest")
    reporter = reporter or Reporter.silent()
    base = base or load_base(version.manifest)
    reporter.line(f"measuring {version.ref} on the test part")
    metrics: dict[str, dict[str, MetricValue]] = {}
    for one in by_split(read_adapter(registry, version, base)):
        model, builder, split = restore(one, data, base)
        try:
            found = predict(model, builder, split, PARTS["test"], max_events=one.reading.max_events)
            results = task_results(found, model, builder, split)
        finally:
            model.release()
        for name, result in results.items():
            metrics[name] = {each: MetricValue(**entry) for each, entry in result.own_metrics().items()}
    return version.manifest.model_copy(update={"metrics": metrics, "data": used.model_copy(update={"digest": data.digest})})
