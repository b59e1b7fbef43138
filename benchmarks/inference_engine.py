"""The engine's public calls: shared layers, branches, more adapters than slots, swaps, memory; fp32 on the packaged base.

tasks       four adapters on the top third of the layers asked about one history of 200 tokens: one call against four.
candidates  1,000 candidates of `like` on a history of 30 events: one request against one request per candidate.
many        requests over 1,000 adapters drawn by Zipf's law (exponent 1), 64 slots, 128 in the CPU tier, against 64 adapters.
swaps       8 threads of requests while a name is swapped every 200 ms, against none; then 10,000 requests under swaps, each
            score compared with that of the version whose digest it names.
memory      64 resident adapters: resident memory beyond the base, against the bytes of the adapters.
"""

import gc
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

import genre
from genre.engine import Engine, Request
from genre.jobs.encoders import publish_encoder
from genre.jobs.publish import adapter_manifest, write_adapter
from genre.registry import Registry
from genre.registry.manifest import Cost
from genre.training.assembly import assemble

RECIPES = Path(__file__).parent.parent / "recipes"
COST = Cost(seconds=0, tokens=0, peak_memory_bytes=0, lora_params=0, head_params=0)


class Shelf:
    """A registry of adapters with random weights over one fitted-shape encoder; only cost and identity of scores matter here."""

    def __init__(
        self,
        folder: Path,
        log: genre.Interactions,
        base: genre.Base,
        *,
        layers: str = "all",
        recipe: genre.Recipe | None = None,
    ) -> None:
        self.log = log
        self.base = base
        self.registry = Registry(folder / "registry")
        self.folder = folder
        overrides = [f"base.depth={base.depth}", f"adapter.layers={layers}", "encoder.use=fit"]
        self.recipe = recipe or genre.Recipe.read(RECIPES / "like.yaml", overrides)
        self.assembly = assemble(self.recipe, log, base)
        self.assembly.model.release()
        self.encoder, _ = publish_encoder(self.assembly, folder, self.registry, COST)
        self.draw = torch.Generator().manual_seed(0)

    @torch.no_grad()
    def add(self, name: str) -> tuple[str, int]:
        """Publish one more adapter; its reference and the bytes of its weights."""
        model = self.assembly.model
        for label, value in model.lora_parameters():
            scale = 0.02 if label.endswith("lora_B") else value.shape[1] ** -0.5
            value.copy_(scale * torch.randn(value.shape, generator=self.draw))
        place = self.folder / "aside" / f"{name}-{time.monotonic_ns()}"
        write_adapter(place, self.assembly)
        manifest = adapter_manifest(self.assembly, encoder=self.encoder, cost=COST, metrics={})
        version = self.registry.publish(place, manifest.model_copy(update={"name": name}))
        return version.ref, sum(value.numel() * value.element_size() for _, value in model.lora_parameters())


def alternate(ways: dict[str, Callable[[], object]], rounds: int) -> tuple[dict[str, float], float]:
    """Time two ways: median seconds, and the median over rounds of the second's time relative to the first's."""
    names = list(ways)
    for way in ways.values():
        way()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, way in ways.items():
            begun = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - begun)
    ratio = median(b / a for a, b in zip(seconds[names[0]], seconds[names[1]], strict=True))
    return {name: median(values) for name, values in seconds.items()}, ratio


def history_of(log: genre.Interactions, events: int, *, skip: int = 0) -> list[dict[str, Any]]:
    """Return `count` events of a user who has that many."""
    users = [user for user in log.user_ids if len(log.history(user)) >= events]
    return log.history(users[skip % len(users)])[:events]


def difference(one: list[Any], other: list[Any]) -> float:
    """Largest difference of scores; every response must have succeeded."""
    for response in [*one, *other]:
        if response.error is not None:
            raise RuntimeError(response.error)
    a, b = ([scored.score for response in side for scored in response.results] for side in (one, other))
    return float(np.abs(np.array(a) - np.array(b)).max())


def tasks(shelf: Shelf, rounds: int) -> dict[str, Any]:
    """Four tasks on one history."""
    refs = [shelf.add(f"top{number}")[0] for number in range(4)]
    history, candidate = history_of(shelf.log, 95), shelf.log.catalogue.item_ids[:1]
    requests = [Request(ref, history=history, candidates=candidate) for ref in refs]
    with Engine(shelf.base, shelf.registry, lanes=4) as engine:
        worst = difference(engine.score(requests), [engine.score([request])[0] for request in requests])
        seconds, ratio = alternate(
            {"together": lambda: engine.score(requests), "apart": lambda: [engine.score([request]) for request in requests]},
            rounds,
        )
    return {"seconds": seconds, "max_abs_difference": worst, "ratios": {"tasks_4_shared": ratio}}


def candidates(shelf: Shelf, rounds: int, *, count: int = 1000) -> dict[str, Any]:
    """Many candidates on one history."""
    ref, _ = shelf.add("like")
    history, items = history_of(shelf.log, 30), shelf.log.catalogue.item_ids[:count]
    whole = [Request(ref, history=history, candidates=items)]
    single = [Request(ref, history=history, candidates=[item]) for item in items]
    with Engine(shelf.base, shelf.registry, lanes=4) as engine:
        worst = difference(engine.score(whole), engine.score(single))
        seconds, ratio = alternate({"branches": lambda: engine.score(whole), "rows": lambda: engine.score(single)}, rounds)
    return {"seconds": seconds, "max_abs_difference": worst, "ratios": {"candidates_1000": ratio}}


def many(shelf: Shelf, rounds: int, *, adapters: int = 1000, lanes: int = 64, host: int = 128, batch: int = 64) -> dict[str, Any]:
    """Throughput with more adapters in use than slots."""
    refs = [shelf.add(f"a{number}")[0] for number in range(adapters)]
    draw = np.random.default_rng(0)
    histories = [history_of(shelf.log, 50, skip=number) for number in range(32)]
    weights = 1 / np.arange(1, adapters + 1)

    def requests(most: int) -> list[Request]:
        chosen = draw.choice(most, size=batch, p=weights[:most] / weights[:most].sum())
        items = shelf.log.catalogue.item_ids
        found = []
        for adapter in chosen:
            some = [items[int(code)] for code in draw.integers(len(items), size=10)]
            found.append(Request(refs[adapter], history=histories[int(draw.integers(32))], candidates=some))
        return found

    seconds: dict[str, list[float]] = {"few": [], "many": []}
    with Engine(shelf.base, shelf.registry, lanes=lanes, host=host) as engine:
        for turn in range(rounds + 4):
            for name, most in (("few", lanes), ("many", adapters)):
                asked = requests(most)
                if turn == 0 and name == "few":
                    for ref in refs[:lanes]:
                        engine.load(ref)
                if name == "few":  # what is measured is service with every adapter resident, not coming back from the others
                    for request in asked:
                        engine.load(request.adapter)
                begun = time.perf_counter()
                answers = engine.score(asked)
                if turn >= 4:
                    seconds[name].append(time.perf_counter() - begun)
                failed = [answer.error for answer in answers if answer.error]
                if failed:
                    raise RuntimeError(failed[0])
    ratio = sum(seconds["few"]) / sum(seconds["many"])
    return {
        "adapters": adapters,
        "lanes": lanes,
        "host": host,
        "batch": batch,
        "requests_per_second": {name: batch * len(values) / sum(values) for name, values in seconds.items()},
        "ratios": {"lanes_64_of_1000": ratio},
    }


@contextmanager
def swapping(engine: Engine, name: str, refs: list[str], every: float, taken: list[float]) -> Iterator[None]:
    """A thread that keeps swapping a name to the next reference."""
    stop = threading.Event()

    def run() -> None:
        turn = 0
        while not stop.wait(every):
            turn += 1
            begun = time.perf_counter()
            engine.swap(name, refs[turn % len(refs)])
            taken.append(1000 * (time.perf_counter() - begun))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def swaps(shelf: Shelf, seconds: float, *, threads: int = 8, total: int = 10_000) -> dict[str, Any]:
    """Swaps under load: throughput, time of a swap, failed requests and mixed versions."""
    refs = [shelf.add("swapped")[0] for _ in range(3)]
    other, _ = shelf.add("other")
    history = history_of(shelf.log, 30)
    items = shelf.log.catalogue.item_ids[:5]
    taken: list[float] = []

    def asked(ref: str, size: int) -> list[Request]:
        return [Request(ref if i % 2 == 0 else other, history=history[: 10 + i % 20], candidates=items) for i in range(size)]

    with Engine(shelf.base, shelf.registry, lanes=8) as engine:
        expected: dict[tuple[str, int], list[float]] = {}
        for ref in [*refs, other]:
            for size in range(20):
                answer = engine.score([Request(ref, history=history[: 10 + size], candidates=items)])[0]
                expected[answer.digest or "", size] = [scored.score for scored in answer.results]
        engine.swap("swapped", refs[0])

        def load(limit_seconds: float | None, limit: int | None) -> tuple[int, int, int, float]:
            counts, lock, begun = {"done": 0, "failed": 0, "mixed": 0}, threading.Lock(), time.perf_counter()

            def work() -> None:
                while True:
                    with lock:
                        over = limit is not None and counts["done"] >= limit
                        if over or (limit_seconds is not None and time.perf_counter() - begun > limit_seconds):
                            return
                        counts["done"] += 16
                    for place, answer in enumerate(engine.score(asked("swapped", 16))):
                        wanted = expected.get((answer.digest or "", place % 20))
                        scores = [scored.score for scored in answer.results]
                        wrong = wanted is None or len(scores) != len(wanted) or np.abs(np.subtract(scores, wanted)).max() > 1e-4
                        with lock:
                            counts["failed"] += answer.error is not None
                            counts["mixed"] += answer.error is None and bool(wrong)

            workers = [threading.Thread(target=work) for _ in range(threads)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            return counts["done"], counts["failed"], counts["mixed"], time.perf_counter() - begun

        rates: dict[str, list[float]] = {"still": [], "swapping": []}
        load(2, None)
        for _ in range(3):
            done, *_, spent = load(seconds / 6, None)
            rates["still"].append(done / spent)
            with swapping(engine, "swapped", refs, 0.2, taken):
                done, *_, spent = load(seconds / 6, None)
            rates["swapping"].append(done / spent)
        with swapping(engine, "swapped", refs, 0.2, taken):
            done, failed, mixed, _ = load(None, total)
    return {
        "requests_per_second": {name: median(values) for name, values in rates.items()},
        "ratios": {"swap_throughput": median(b / a for a, b in zip(rates["still"], rates["swapping"], strict=True))},
        "counts": {
            "requests": done,
            "failed": failed,
            "mixed": mixed,
            "swaps": len(taken),
            "swap_ms_median": median(taken),
            "swap_ms_p99": float(np.quantile(taken, 0.99)),
        },
    }


def memory(shelf: Shelf, *, adapters: int = 64) -> dict[str, Any]:
    """Memory of 64 resident adapters beyond the base and their own bytes, by the process's resident memory."""
    made = [shelf.add(f"m{number}") for number in range(adapters)]
    base_bytes = sum(value.numel() * value.element_size() for value in shelf.base.model.parameters())
    own = sum(size for _, size in made)
    request = Request(made[0][0], history=history_of(shelf.log, 30), candidates=shelf.log.catalogue.item_ids[:5])
    with Engine(shelf.base, shelf.registry, lanes=4) as engine:  # tables of items and buffers of a pass exist before and after
        engine.score([request])
    del engine
    gc.collect()
    before = resident_bytes()
    with Engine(shelf.base, shelf.registry, lanes=adapters) as engine:
        for ref, _ in made:
            engine.load(ref)
        engine.score([request])
        gc.collect()
        grown = resident_bytes() - before
    return {
        "base_bytes": base_bytes,
        "adapter_bytes": own,
        "grown_bytes": grown,
        "counts": {"memory_64_overhead": (grown - own) / (base_bytes + own)},
    }


def resident_bytes() -> int:
    """Resident memory of this process, in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmRSS")


def quantized(log: genre.Interactions, registry: Path, *, ref: str = "like@production") -> dict[str, Any]:
    """Bytes of int8 and nf4 linears against fp32's, and a published adapter's test metric on each, paired by user."""
    from genre.data.splits import PARTS
    from genre.engine.versions import read_adapter
    from genre.evaluation.metrics.bootstrap import paired_bootstrap
    from genre.jobs.loading import load_base, restore
    from genre.training.prediction import predict

    store = Registry(registry)
    manifest = store.resolve(ref).manifest
    found, sizes = {}, {}
    for kind in ("none", "int8", "nf4"):
        base = load_base(manifest, quantization=kind)
        sizes[kind] = linear_bytes(base.model)
        loaded = read_adapter(store, ref, base)
        model, builder, split = restore(loaded, log, base)
        part = predict(model, builder, split, PARTS["test"], max_events=loaded.layout.max_events, batch_tokens=8192)
        found[kind] = next(iter(part.values()))
        model.release()
    targets = found["none"][0]
    name = next(iter(manifest.tasks))["metrics"][0]
    loss = {}
    for kind in ("int8", "nf4"):
        figure = paired_bootstrap(str(name), targets.user, targets.label, found["none"][1], found[kind][1])
        loss[kind] = {"metric": name, "loss": figure.value, "interval": [figure.low, figure.high], "n": figure.n}
    return {
        "linear_bytes": sizes,
        "loss": loss,
        "counts": {
            "int8_linear_memory": sizes["int8"] / sizes["none"],
            "nf4_linear_memory": sizes["nf4"] / sizes["none"],
            "int8_metric_loss": loss["int8"]["loss"],
            "nf4_metric_loss": loss["nf4"]["loss"],
        },
    }


def linear_bytes(model: torch.nn.Module) -> int:
    """Bytes of the layers' linears: weights, and the state of quantized ones."""
    total = 0
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear) or name.endswith("lm_head"):
            continue
        held = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
        total += sum(value.numel() * value.element_size() for value in held.values())
        weight = module.weight
        if (statistics := getattr(weight, "SCB", None)) is not None:
            total += statistics.numel() * statistics.element_size()
        if (state := getattr(weight, "quant_state", None)) is not None:
            total += sum(v.numel() * v.element_size() for v in state.as_dict(packed=True).values() if isinstance(v, torch.Tensor))
    return total
