"""Versions out to stock PEFT, merged into their base, or to vLLM; PEFT adapters in from elsewhere."""

from pathlib import Path

from genre.errors import RegistryError
from genre.registry.export.archive import pack
from genre.registry.export.merged import export_merged
from genre.registry.export.peft import export_peft
from genre.registry.export.vllm import export_vllm
from genre.registry.manifest import Version

_FORMS = {"peft": export_peft, "merged": export_merged, "vllm": export_vllm}


def export(version: Version, source: Path, out: Path, base: Path | None, *, to: str = "peft", tar: bool = False) -> Path:
    """Write a version, whose checked files are in `source`, in one of the forms; see `Registry.export`."""
    if to not in _FORMS:
        raise RegistryError("cannot export to that", got=repr(to)[:80], expected="peft, merged or vllm")
    _FORMS[to](version, source, out, base)
    if tar:
        pack(out, out.with_name(out.name + ".tar"))
    return out
