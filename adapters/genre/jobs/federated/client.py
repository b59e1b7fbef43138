"""A client: it holds a log, and answers what the server asks about it.

Owns: what a client tells, its local training from the server's tensors, its folder. Ignores: other clients, how packets travel.

    folder/RUN/recipe.yaml  log.jsonl  checkpoints/last.pt  [encoder.json  encoder.safetensors]

Between two questions nothing need stay in memory: weights, optimizer, counters and random numbers are in the checkpoint.
Where the server sends back exactly what the client had, the optimizer goes on; else its moments are of other weights, and it
starts anew. So a client that is alone trains as `genre train` does.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
import torch
import yaml
from safetensors.torch import load_file, save_file

from genre._version import __version__
from genre.data.catalogue import Catalogue
from genre.data.interactions import Interactions
from genre.data.sequences.layout import FeedbackVocabulary
from genre.data.splits import PARTS
from genre.distributed import Processes
from genre.errors import InputError, ManifestError
from genre.files import appearing_folder
from genre.jobs.evaluate import task_results
from genre.jobs.federated.averaging import shrunk
from genre.jobs.federated.packets import Packet, State, tensors
from genre.jobs.folders import describe_run
from genre.jobs.loading import open_base
from genre.jobs.publish import adapter_manifest, write_adapter, write_encoder
from genre.modules.base.base import Base
from genre.modules.base.source import find
from genre.modules.encoder import BehaviourEncoder
from genre.progress import Reporter
from genre.recipe import BaseConfig, Recipe
from genre.registry.manifest import Cost
from genre.training.assembly import Agreed, Assembly, assemble, feedback_column, fit_vocabulary, training_split
from genre.training.loop import Loop
from genre.training.parts import SharedEncoder
from genre.training.prediction import predict
from genre.training.runtime import RandomStream
from genre.training.validation import validation_metrics

SENT_FILES = (
    "manifest.json",
    "recipe.yaml",
    "adapter_config.json",
    "heads.json",
    "catalogue.jsonl",
    "encoder/encoder.json",
    "encoder/catalogue.jsonl",
)
"""Files of a version that a client sends; others, such as the set of its users, stay where they are."""
OWN_FILES = ("manifest.json", "recipe.yaml", "adapter_config.json")
"""Files that name a client's own paths or data; all others are the same at all clients."""
SHARED = "shared"
"""The folder of a frozen encoder that the server sent."""


def local_base(wanted: BaseConfig) -> Base:
    """Load a base that is on this machine already, or comes as a package: the server named it, so nothing is fetched."""
    find(wanted.name, fetch=False)
    return open_base(wanted)


class Client:
    """A holder of data in federated training.

    Args:
        log: Its log; it never leaves the client.
        name: By which the others know it.
        folder: Where it keeps its runs.
        rank: Of its low-rank layers, at most the recipe's; the recipe's if None.
        base: A folder or name that takes precedence over the recipe's base, for a machine that has it elsewhere.
        load: Loads a base.
        reporter: Receives progress.
    """

    def __init__(
        self,
        log: Interactions,
        name: str,
        folder: Path,
        *,
        rank: int | None = None,
        base: str | None = None,
        load: Callable[[BaseConfig], Base] = local_base,
        reporter: Reporter | None = None,
    ) -> None:
        self.log = log
        self.name = name
        self.folder = folder
        self.rank = rank
        self.base = base
        self.load = load
        self.reporter = reporter or Reporter.silent()
        self._local: tuple[str, LocalRun] | None = None

    def __call__(self, kind: str, question: Packet) -> Packet:
        """Answer a question.

        Raises:
            GenreError: It cannot be answered; the message goes to the server.
        """
        answers = {
            "describe": self.describe,
            "start": self.start,
            "train": self.train,
            "evaluate": self.evaluate,
            "files": self.files,
        }
        if kind not in answers:
            raise InputError("no such question", got=kind, expected=", ".join(answers), todo="install one release everywhere")
        return answers[kind](question)

    def describe(self, question: Packet) -> Packet:
        """The client's name, its number of examples, and what all clients have to agree on."""
        recipe, log = self._recipe(question), self.log
        split, mask = training_split(recipe, log)
        column = feedback_column(recipe, log)
        vocabulary = fit_vocabulary(column, log, mask)
        classes = {task.name: int(log.labels_of(task).max()) + 1 for task in recipe.tasks if task.head == "categorical"}
        found = {
            "name": self.name,
            "examples": int(mask.sum()),
            "validating": int((split.part == PARTS["valid"]).sum()),
            "catalogue": log.catalogue.digest,
            "feedback": None if vocabulary is None else {"column": vocabulary.column, "values": list(vocabulary.values)},
            "classes": classes,
            "rank": self._rank(recipe),
            "release": __version__,
        }
        if not question.facts["blank"]:
            found |= {"data": log.digest, "time_span": log.time_span(mask)}
        return Packet(found)

    def start(self, question: Packet) -> Packet:
        """The tensors that this client would start at, at the recipe's rank, and the description of what they make up."""
        if question.arrays:
            self._keep_encoder(question)
        run = self._run(question, new=True)
        texts = run.texts()
        same = {name: _digest(text) for name, text in texts.items() if name not in OWN_FILES}
        draft = json.loads(texts["manifest.json"])
        same |= {f"base.{key}": draft["base"][key] for key in ("fingerprint", "depth", "quantization")}
        same |= {key: json.dumps(draft[key], sort_keys=True) for key in ("tokenizer", "sequence", "encoder", "catalogue")}
        return Packet({"same": same}, run.whole)

    def train(self, question: Packet) -> Packet:
        """Train some epochs from the server's tensors; the client's own, and the mean loss of the last epoch."""
        run, facts = self._run(question), question.facts
        loss = run.train(
            question.arrays, first=int(facts["first_epoch"]), epochs=int(facts["epochs"]), of=int(facts["of_epochs"])
        )
        self.reporter.line(f"{self.name}: round {facts['round']}, loss {loss:.4f}")
        return Packet({"loss": loss}, run.state())

    def evaluate(self, question: Packet) -> Packet:
        """The metrics of the server's tensors on this client's validation or test part."""
        return Packet({"metrics": self._run(question).evaluate(question.arrays, question.facts["part"])})

    def files(self, question: Packet) -> Packet:
        """The text files of the version that comes out, and the draft of its manifest: nothing of the log is in them."""
        return Packet(self._run(question).texts())

    def _recipe(self, question: Packet) -> Recipe:
        """The server's recipe on this client's data; no tracker that the server names is called."""
        raw = yaml.safe_load(question.facts["recipe"])
        recipe = Recipe.parse(raw, where="the server's recipe")
        base = recipe.base.model_copy(update={"name": self.base or recipe.base.name})
        train = recipe.train.model_copy(update={"tracker": "none"})
        return recipe.model_copy(update={"base": base, "train": train})

    def _rank(self, recipe: Recipe) -> int:
        rank = self.rank or recipe.adapter.rank
        if not 1 <= rank <= recipe.adapter.rank:
            expected = f"1 to {recipe.adapter.rank}, the recipe's adapter.rank"
            raise InputError(f"the rank of client {self.name}", got=rank, expected=expected)
        return rank

    def _run(self, question: Packet, *, new: bool = False) -> "LocalRun":
        """The run that a question is about, from memory or from its folder; with `new` from the start."""
        run = str(question.facts["run"])
        if not run.isalnum():
            raise InputError("the name of a federated run", got=run[:40], expected="letters and digits")
        if not new and self._local is not None and self._local[0] == run:
            return self._local[1]
        recipe, root = self._recipe(question), self.folder / run
        rank = self._rank(recipe)
        base = self.load(recipe.base)
        if new:
            describe_run(root, recipe)
        common = question.facts["agreed"]
        agreed = Agreed(_vocabulary(common["feedback"]), common["classes"], bool(question.facts["blank"]))
        assembly = assemble(recipe, self.log, base, read_shared(root / SHARED), bare=True, agreed=agreed)
        local = LocalRun(assembly, root, rank, frozen=bool(question.facts["freeze_a"]), new=new)
        self._local = (run, local)
        return local

    def _keep_encoder(self, question: Packet) -> None:
        """Write the frozen encoder that came with a question into the run's folder."""
        folder = self.folder / str(question.facts["run"]) / SHARED
        with appearing_folder(folder) as aside:
            save_file(tensors(question.arrays), aside / "encoder.safetensors")
            (aside / "encoder.json").write_text(json.dumps(question.facts["encoder"]), encoding="utf-8")


def read_shared(folder: Path) -> SharedEncoder | None:
    """The frozen encoder that a server sent; None if it sent none."""
    if not folder.is_dir():
        return None
    described = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
    try:
        encoder = BehaviourEncoder.restore(described["spec"], described["items"], load_file(folder / "encoder.safetensors"))
        carried = Catalogue(pl.DataFrame({"item_id": described["carried"]}, schema={"item_id": pl.String}))
        return SharedEncoder(encoder, _vocabulary(described["feedback"]), described["digest"], carried)
    except (KeyError, TypeError) as error:
        raise ManifestError("the encoder that the server sent", got=f"no {error}", expected="spec, items, feedback") from None


def _vocabulary(described: dict[str, Any] | None) -> FeedbackVocabulary | None:
    return None if described is None else FeedbackVocabulary(described["column"], tuple(described["values"]))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass
class LocalRun:
    """A client's part of one federated run.

    Attributes:
        assembly: Its model; on the base while it trains or is evaluated.
        root: Its folder.
        rank: Of its low-rank layers.
        frozen: True if A stays as it is.
        new: True for one that begins.
        whole: The tensors that it begins at, at the recipe's rank; empty unless it is new.
    """

    assembly: Assembly
    root: Path
    rank: int
    frozen: bool
    new: bool = False

    def __post_init__(self) -> None:
        self.whole: State = self.state() if self.new else {}
        with torch.no_grad():
            for layer in self.assembly.model.layers.values():
                layer.lora_A = torch.nn.Parameter(layer.lora_A[: self.rank].clone(), requires_grad=not self.frozen)
                layer.lora_B = torch.nn.Parameter(layer.lora_B[:, : self.rank].clone())
                layer.rank = self.rank
        self.stream = RandomStream(*self.assembly.base.devices)

    @cached_property
    def loop(self) -> Loop:
        """The loop whose steps the client takes; it goes on from the checkpoint, if there is one."""
        loop = Loop(self.assembly, self.root, Reporter.silent())
        if (self.root / "checkpoints" / "last.pt").is_file():
            loop.restore()
            self.stream.capture()
        return loop

    @contextmanager
    def active(self, arrays: State) -> Iterator[None]:
        """A block with the model on the base, at the server's tensors, and this run's own random numbers."""
        model = self.assembly.model
        loop = self.loop
        with self.stream.drawing():
            model.put(model.layers)
            try:
                if not self._take(shrunk(arrays, self.rank)):
                    loop.optimization.restart()
                yield
            finally:
                model.release()

    def state(self) -> State:
        """Copies of the tensors that travel: low-rank factors, heads and, where it is being fitted, the encoder."""
        return {name: value.detach().cpu().numpy().copy() for name, value in self._tensors().items()}

    def _tensors(self) -> dict[str, torch.Tensor]:
        model = self.assembly.model
        found: dict[str, torch.Tensor] = dict(model.lora_parameters())
        found |= {f"heads.{name}": value for name, value in model.heads.state_dict().items()}
        if self.assembly.fits_encoder and model.encoder is not None:
            found |= {f"encoder.{name}": value for name, value in model.encoder.state_dict().items()}
        return found

    @torch.no_grad()
    def _take(self, arrays: State) -> bool:
        """Take the server's tensors; True if they are those that are here already."""
        own = self._tensors()
        if stray := sorted(own.keys() ^ arrays.keys()):
            raise InputError("the server's tensors are not those of this client", got=stray[:3], expected=f"{len(own)} tensors")
        same = True
        for name, given in tensors(arrays).items():
            value, given = own[name], given.to(own[name])
            if given.shape != value.shape:
                raise InputError(f"the server's tensor {name}", got=tuple(given.shape), expected=tuple(value.shape))
            same &= torch.equal(given, value)
            value.copy_(given)
        return same

    def train(self, arrays: State, *, first: int, epochs: int, of: int) -> float:
        """Train epochs `first` to `first + epochs` of a run of so many; return the mean loss of the last one."""
        loop = self.loop
        losses: list[float] = []
        with self.active(arrays):
            for epoch in range(first, first + epochs):
                losses = []
                batches = loop.plan(epoch)
                loop.set_training()
                loop.state.epoch = epoch
                for index, rows in enumerate(batches):
                    progress, begun = (epoch + index / len(batches)) / of, time.perf_counter()
                    result = loop.step(rows, progress)
                    loop.account(progress, result, seconds=time.perf_counter() - begun)
                    losses.append(result.loss)
            loop.save()
        return float(np.mean(losses))

    def evaluate(self, arrays: State, part: str) -> dict[str, Any]:
        """The metrics on a part: values by `task.metric` on validation, with intervals by task and metric on the test part."""
        assembly = self.assembly
        with self.active(arrays):
            if part == "valid":
                return validation_metrics(assembly, Processes())
            most = assembly.recipe.data.max_events
            found = predict(assembly.model, assembly.builder, assembly.split, PARTS[part], max_events=most)
            results = task_results(found, assembly.model, assembly.builder, assembly.split)
        return {name: result.own_metrics() for name, result in results.items()}

    def texts(self) -> dict[str, str]:
        """The text files of the version, and the draft of its manifest as `manifest.json`."""
        assembly = self.assembly
        shared = assembly.shared.digest if assembly.shared else None
        with TemporaryDirectory() as made:
            folder = Path(made)
            write_adapter(folder, assembly)
            if assembly.fits_encoder:
                write_encoder(folder / "encoder", assembly)
            draft = adapter_manifest(assembly, encoder=shared, cost=Cost(), metrics={}).raw()
            draft["data"] = {"split": draft["data"]["split"]}  # the rest is of this client alone
            (folder / "manifest.json").write_text(json.dumps(draft, sort_keys=True), encoding="utf-8")
            return {name: file.read_text(encoding="utf-8") for name in SENT_FILES if (file := folder / name).is_file()}
