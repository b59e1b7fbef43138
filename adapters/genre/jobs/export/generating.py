"""An adapter that generates items as a folder that vLLM serves: what all adapters share is in the base's vocabulary.

Owns: the files, and the proof that they answer as the engine does. Ignores: the client's search
(`registry.export.generate_client`), adapters over text (`registry.export.served`).

    exported/
        base/                                  # the base's first layers, with a token for each code, item and feedback
        adapter/adapter_config.json, adapter_model.safetensors
        items.jsonl                            # {"item_id": "50", "text": "Star Wars", "codes": [3, 17, 0]}
        grammar.ebnf                           # the codes of all items, for structured outputs
        generate.py  client.py  prompt.json  canaries.json  manifest.json  README.md

vLLM has no vocabulary for each adapter, and knows no head of an adapter's own. A generate head holds no weights, and vectors of
codes, items and feedback belong to the behaviour encoder, which adapters share. So they are rows of the base's embedding and
head, and the adapter is plain LoRA.
"""

import json
import shlex
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from genre.data.catalogue import Catalogue
from genre.data.interactions import Interactions
from genre.data.sequences.control import refused_ids
from genre.data.sequences.instruction import fields_of
from genre.engine import Engine, Request, Scored
from genre.engine.versions import Loaded, read_adapter
from genre.errors import JobError, RegistryError
from genre.files import appearing_folder, refuse_foreign
from genre.jobs.loading import load_base
from genre.modules.base.base import Base
from genre.modules.base.extended import extend_base
from genre.modules.embedding import SoftTokens
from genre.modules.lora.stock import label_logits
from genre.registry import Registry
from genre.registry.card import render_card
from genre.registry.export import client, generate_client
from genre.registry.export.canaries import TOLERANCE
from genre.registry.export.client import CANARIES, Server, distance
from genre.registry.export.generate_client import BEAM, CodePrompts, Generator, Trie, code_text
from genre.registry.export.served import read_plainly
from genre.registry.export.vllm import max_rank, serve_arguments
from genre.registry.integrity import CARD
from genre.registry.manifest import Version
from genre.registry.names import MANIFEST
from genre.registry.weights.lora import ADAPTER, CONFIG
from genre.registry.weights.lora import read_adapter as read_peft

CHECKED = 4
"""Histories whose answers are compared with the engine's."""
CLOSE = 1e-2
"""The largest difference of a probability."""
OWN_IMPORT = "from genre.registry.export.client import"


def export_generating(
    registry: Registry,
    ref: str | Version,
    out: str | Path,
    base: str | Path,
    *,
    data: Interactions | None = None,
    task: str | None = None,
    canaries: bool = True,
) -> float:
    """Write a version that generates items as a folder for vLLM.

    Args:
        registry: Holds the version and its encoder.
        ref: The version.
        out: A new folder.
        base: Its base's transformers folder.
        data: A log, whose catalogue replaces the version's own.
        task: Of several that generate.
        canaries: Write canaries, by which a server is checked.

    Returns:
        The largest difference from the engine's probabilities that was found.

    Raises:
        RegistryError: The version does not generate items, or has no low-rank weights.
        ManifestError: The folder holds another base.
        JobError: The folder's answers are not the engine's.
    """
    version = registry.resolve(ref)
    name = _task(version, task)
    refuse_foreign(Path(out), None)
    source = registry.fetch(version)
    if not (source / ADAPTER).exists():
        raise RegistryError(
            f"{version.ref} has no LoRA to export", got=f"no {ADAPTER}", expected="an adapter with low-rank weights"
        )
    adapter, loaded_base = read_peft(source), load_base(version.manifest, str(base))
    if adapter.swapped:
        got = "fan_in_fan_out (GPT-2 kind)"
        raise RegistryError("vLLM has no LoRA for this kind of base", got=got, expected="plain linears")
    loaded = read_adapter(registry, version.exact, loaded_base)
    catalogue = loaded.catalogue if data is None else data.catalogue
    with appearing_folder(Path(out)) as folder:
        prompt = _write_base(folder / "base", Path(base), loaded, loaded_base, catalogue, name)
        (folder / "adapter").mkdir()
        for file in (CONFIG, ADAPTER):
            shutil.copyfile(source / file, folder / "adapter" / file)
        shutil.copyfile(source / MANIFEST, folder / MANIFEST)
        shutil.copyfile(client.__file__, folder / "client.py")
        text = Path(generate_client.__file__).read_text(encoding="utf-8")
        (folder / "generate.py").write_text(text.replace(OWN_IMPORT, "from client import"), encoding="utf-8")
        _write_json(folder / "prompt.json", prompt)
        items = [json.loads(line) for line in (folder / "items.jsonl").read_text(encoding="utf-8").split("\n") if line]
        (folder / "grammar.ebnf").write_text(Trie(items).grammar(), encoding="utf-8")
        stock = Stock(folder, prompt, loaded_base)
        _write_json(folder / CANARIES, _canaries(version, stock, items, canaries))
        difference = _check(registry, version, loaded_base, name, folder, stock, data)
        card = render_card(version.manifest, full=True) + _usage(prompt, max_rank(adapter), difference)
        (folder / CARD).write_text(card, encoding="utf-8")
    return difference


def _task(version: Version, name: str | None) -> str:
    found = [
        str(task["name"]) for task in version.manifest.tasks if task.get("head") == "generate" and name in (None, task["name"])
    ]
    if len(found) != 1:
        got = f"{version.ref} with {', '.join(str(task['name']) for task in version.manifest.tasks) or 'no task'}"
        expected = "one task with head: generate" + (" (--task)" if len(found) > 1 else "")
        raise RegistryError("no task to export", got=got if name is None else f"{name!r} of {got}", expected=expected)
    return found[0]


@torch.no_grad()
def _write_base(out: Path, source: Path, loaded: Loaded, base: Base, catalogue: Catalogue, task: str) -> dict[str, Any]:
    """Write the base with the encoder's vectors and `items.jsonl` beside it; returns the content of `prompt.json`."""
    assert loaded.shared is not None
    encoder, layout = loaded.shared.encoder.eval(), loaded.layout
    table = encoder.table(catalogue, base)
    soft = SoftTokens(encoder, table.to(base.device))
    assert soft.codes is not None and table.codes is not None
    codes = soft.codes
    named = [code_text(level, code) for level, size in enumerate(codes.sizes) for code in range(size)]
    inputs = [codes.token_vectors(), soft.every()]
    if layout.feedback is not None:
        inputs.append(encoder.feedback_vectors(torch.arange(layout.feedback.size, device=base.device)))
    outputs = torch.cat([codes.output_vectors(level) for level in range(codes.levels)])
    first = extend_base(source, base.depth, out, named, torch.cat([each.float().cpu() for each in inputs]), outputs)
    described, texts = layout.describe(), catalogue.texts(list(layout.text))
    plain = layout.control_tokens == "text"
    if plain:
        read_plainly(out)
    with (out.parent / "items.jsonl").open("w", encoding="utf-8") as file:
        for item, text, own in zip(catalogue.item_ids, texts, table.codes.tolist(), strict=True):
            file.write(json.dumps({"item_id": item, "text": text, "codes": own}, ensure_ascii=False) + "\n")
    refused = sorted({*refused_ids(base.tokenizer)} if plain else ())
    return {
        "server": "vllm",
        "model": loaded.name,
        "version": loaded.version,
        "start": list(layout.start),
        "user_columns": fields_of(str(described["instruction"])),
        "layout": described,
        "control": [*refused, *range(first, first + len(named))],
        "tasks": [{"name": task, "words": [], "word_ids": []}],
        "code_sizes": list(codes.sizes),
        "first_code": first,
        "first_item": first + len(named),
        "first_feedback": first + len(named) + catalogue.size,
    }


class Stock(Server):
    """The exported folder behind stock transformers and PEFT, in the place of a server."""

    kind = "PEFT"

    def __init__(self, folder: Path, prompt: dict[str, Any], base: Base) -> None:
        self.prompt, self.url = prompt, str(folder)
        self._ask = label_logits(folder / "base", folder / "adapter", None)
        self._tokenizer = base.tokenizer
        self._layout = prompt["layout"]

    def close(self) -> None:
        """Nothing to close."""

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text, as the adapter was trained to read it."""
        from genre.data.sequences.control import recorded_rule, token_ids

        return list(token_ids(self._tokenizer, text, recorded_rule(self._layout)))

    def log_probabilities(self, prompts: Sequence[list[int]], words: Sequence[int]) -> Iterable[list[float]]:
        """See `Server.log_probabilities`."""
        for ids in prompts:
            yield self._ask(ids, words)[1].log_softmax(-1).tolist()

    def both(self, ids: Sequence[int], words: Sequence[int]) -> tuple[list[float], list[float]]:
        """Probabilities of some words by the base alone and with the adapter."""
        alone, adapted = self._ask(ids, words)
        return alone.softmax(-1).tolist(), adapted.softmax(-1).tolist()


def _canaries(version: Version, stock: Stock, items: list[dict[str, Any]], wanted: bool) -> dict[str, Any]:
    """The content of `canaries.json`: histories of some items, with the probabilities of the first codes."""
    prompt, manifest = stock.prompt, version.manifest
    found: dict[str, Any] = {"server": "vllm", "model": manifest.name, "version": manifest.version, "digest": manifest.digest}
    found |= {"tolerance": TOLERANCE, "canaries": []}
    if not wanted:
        return found | {"reason": "the export was asked for no canaries"}
    prompts, words = (
        CodePrompts(prompt, items, stock.tokenize),
        range(prompt["first_code"], prompt["first_code"] + prompt["code_sizes"][0]),
    )
    for history in _histories([item["item_id"] for item in items], prompt["layout"]):
        ids = prompts.history(history, {})
        alone, adapted = stock.both(ids, words)
        about = {"task": prompt["tasks"][0]["name"], "history": history, "token_ids": ids, "word_ids": list(words)}
        about |= {"words": [code_text(0, code) for code in range(len(words))], "base": alone, "adapter": adapted}
        found["canaries"].append(about)
    found["canaries"].sort(key=lambda each: distance(each["base"], each["adapter"]), reverse=True)
    return found | {"canaries": found["canaries"][:2]}


def _histories(item_ids: list[str], layout: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """Histories of one to four items spread over the catalogue."""
    column, values = layout["feedback"], layout.get("values") or [None]
    made = []
    for number in range(CHECKED):
        chosen = [item_ids[(7 * number + 3 * step) % len(item_ids)] for step in range(1 + number)]
        more = [{} if column is None else {column: values[-1 if (number + step) % 2 else 0]} for step in range(1 + number)]
        made.append([{"item_id": item, **event} for item, event in zip(chosen, more, strict=True)])
    return made


def _check(
    registry: Registry, version: Version, base: Base, task: str, folder: Path, stock: Stock, data: Interactions | None
) -> float:
    """Compare the folder's answers with the engine's.

    Raises:
        JobError: A probability differs.
    """
    generator = Generator(stock, folder, check=False)
    histories = _histories([item["item_id"] for item in generator.items], generator.prompt["layout"])
    asked: dict[str, Any] = {"task": task, "k": BEAM, "beam": BEAM, "exclude_seen": False}
    with Engine(base, registry, lanes=1, data=data) as engine:
        answers = engine.score([Request(version.exact, history=history, **asked) for history in histories])
    largest = 0.0
    for history, answer in zip(histories, answers, strict=True):
        if answer.error is not None:
            raise JobError("the folder cannot be checked against the engine", got=answer.error)
        ours = {each.item_id: each.score for each in answer.results if isinstance(each, Scored)}
        theirs = dict(generator.recommend(history, BEAM))
        for item in {*list(ours)[:10], *list(theirs)[:10]}:
            pair = (torch.tensor(found.get(item, -torch.inf)).exp() for found in (ours, theirs))
            one, other = (float(each) for each in pair)
            largest = max(largest, abs(one - other))
    if not largest <= CLOSE:
        got = f"a difference of {largest:.2g} in probability"
        raise JobError(f"the folder of {version.ref} does not answer as the engine does", got=got, expected=f"at most {CLOSE}")
    return largest


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _usage(prompt: dict[str, Any], rank: int, difference: float) -> str:
    first, sizes = prompt["first_code"], prompt["code_sizes"]
    return f"""
## Serve

In this folder, with vLLM installed:

```console
$ vllm {shlex.join(serve_arguments(prompt, rank))}
```

`base/` has the base's layers that the adapter was trained on, and a token for each of {sum(sizes):,} codes (from {first}), for
each item and for each feedback value. Other adapters on the same encoder can be served with it. New items need a new export.

## Ask

`generate.py` needs Python and nothing else; it searches with a beam of {BEAM}, a call for each level:

```console
$ echo '{{"id": "1", "history": [], "k": 5}}' | python generate.py
```

```python
from generate import Generator

Generator("http://127.0.0.1:8000").recommend(history, 10, exclude=seen)      # items and log-probabilities
```

To let the server itself write an item, send `structured_outputs` with the grammar in `grammar.ebnf` (or one of fewer items, by
`Trie.grammar`) and, since other tokens spell the same texts, the codes as `allowed_token_ids`:

```python
from generate import Generator

generator = Generator("http://127.0.0.1:8000")
body = {{"model": "{prompt["model"]}", "prompt": generator.prompts.history(history, {{}}), "max_tokens": {len(sizes)}}}
body |= {{"structured_outputs": {{"grammar": generator.trie.grammar(candidates)}}}}
body |= {{"allowed_token_ids": list(range({first}, {first + sum(sizes)}))}}
print(generator.server.post("/v1/completions", body)["choices"][0]["text"])
```

Stock transformers and PEFT answer from this folder as genre's engine does: probabilities of the best items of {CHECKED} histories
differ by at most {difference:.1e}.
"""
