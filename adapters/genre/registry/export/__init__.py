"""Versions out to stock PEFT, a hub, merged into their base, to servers of language models; PEFT adapters in from elsewhere."""

from functools import partial
from pathlib import Path

from genre.errors import RegistryError
from genre.files import write_text
from genre.registry.card import baseline_section
from genre.registry.export.archive import pack
from genre.registry.export.gguf import export_gguf
from genre.registry.export.hub import check_licence, write_hub_card
from genre.registry.export.merged import export_merged
from genre.registry.export.peft import export_peft
from genre.registry.export.served import add_canaries
from genre.registry.export.sglang import export_sglang
from genre.registry.export.vllm import export_vllm
from genre.registry.integrity import CARD
from genre.registry.manifest import Version
from genre.registry.records import BaselineRecord

_SERVED = {"vllm": export_vllm, "sglang": export_sglang, "gguf": export_gguf}


def export(
    version: Version,
    source: Path,
    out: Path,
    base: Path | None,
    *,
    to: str = "peft",
    tar: bool = False,
    encoder: Path | None = None,
    baselines: BaselineRecord | None = None,
    canaries: bool = True,
    licence: str | None = None,
) -> Path:
    """Write a version, whose checked files are in `source`, in one of the forms; see `Registry.export`.

    `encoder` has the files of its encoder, for the form that takes them along; `baselines` go to the card; `canaries` are written
    where they can be.
    """
    finish = partial(add_canaries, version=version, source=source, base=base, wanted=canaries)
    if to in _SERVED:
        _SERVED[to](version, source, out, base, canaries=canaries)
    elif to == "peft":
        export_peft(version, source, out, base, encoder, finish=finish)
    elif to == "hub-folder":
        check_licence(licence)

        def finish_hub(folder: Path) -> None:
            finish(folder)
            write_hub_card(folder, version.manifest, (source / CARD).read_text(encoding="utf-8"), licence)

        export_peft(version, source, out, base, encoder, finish=finish_hub)
    elif to == "merged":
        export_merged(version, source, out, base, finish=finish)
    else:
        todo = "genre.export and genre registry export write vectors, lists and mlflow too"
        raise RegistryError(
            "cannot export to that", got=repr(to)[:80], expected="peft, hub-folder, merged, vllm, sglang or gguf", todo=todo
        )
    if baselines is not None and (out / CARD).is_file():
        write_text(out / CARD, (out / CARD).read_text(encoding="utf-8") + baseline_section(baselines))
    if tar:
        pack(out, out.with_name(out.name + ".tar"))
    return out
