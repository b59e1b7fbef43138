"""Adapters as others save them with stock PEFT, and the states that each way of running them gives."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from registry_fakes import load_stock

from genre.modules.base.fingerprint import fingerprint
from genre.registry import BaseInfo, Registry, Version

torch = pytest.importorskip("torch")
CLOSE = 1e-5
TOKENS = torch.tensor([[1, 5, 9, 2, 31, 7]])


def save(model: Any, folder: Path, tokenizer: Path) -> Path:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.1)
    model.eval().save_pretrained(folder)
    for file in tokenizer.glob("*token*"):
        if file.parent != folder:
            shutil.copyfile(file, folder / file.name)
    return folder


def tune(model: Any, out: Path, name: str = "default", **options: Any) -> Any:
    """Save an adapter with random weights in B as somebody else would; the tuned model."""
    from peft import LoraConfig, get_peft_model

    tuned = get_peft_model(model, LoraConfig(**({"r": 4, "lora_alpha": 6} | options)), adapter_name=name)
    torch.manual_seed(1)
    with torch.no_grad():
        for key, parameter in tuned.named_parameters():
            if "lora_B" in key:
                parameter.normal_(0, 0.2)
    tuned.save_pretrained(out)
    return tuned.eval()


def take(registry: Registry, source: Path, base: Path, **fields: Any) -> Version:
    info = BaseInfo(name="tiny", fingerprint=fingerprint(base), depth=2)
    return registry.import_peft(source, "taken", base=info, base_folder=base, **fields)


def theirs(tuned: Any) -> Any:
    """The states of the last layer in a tuned model."""
    with torch.no_grad():
        return tuned.get_base_model().base_model(TOKENS)[0]


def ours(registry: Registry, version: Version, folder: Path) -> Any:
    """The same states from an adapter slot."""
    from genre.engine.versions import read_low
    from genre.modules.base.base import Base
    from genre.modules.lora.layer import find_linears
    from genre.modules.lora.slots import AdapterSlots

    base = Base.load(str(folder))
    slots = AdapterSlots(base.model, find_linears(base.model, "all-linear"), slots=2, dtype=torch.float32)
    slots.route([slots.write(read_low(registry.fetch(version), base))])
    lengths = torch.tensor([TOKENS.shape[1]])
    with torch.no_grad():
        return base.hidden(base.embedding(TOKENS), lengths=lengths)


def merged(registry: Registry, version: Version, folder: Path, out: Path, kind: str = "AutoModelForCausalLM") -> Any:
    """The same states from the base that the adapter was merged into."""
    with torch.no_grad():
        return load_stock(registry.export(version, out, to="merged", base=folder), kind).base_model(TOKENS)[0]


def exported(registry: Registry, version: Version, folder: Path, out: Path, kind: str = "AutoModelForCausalLM") -> Any:
    """The same states from stock PEFT with the exported folder."""
    from peft import PeftModel

    return theirs(PeftModel.from_pretrained(load_stock(folder, kind), registry.export(version, out, base=folder)).eval())
