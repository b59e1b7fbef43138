"""A base on the disk: where it is, and its description without its weights.

Owns: finding a base (package, folder or hub id), its configuration and tokenizer, whether it reads causally or
is an encoder (BERT kind: every token sees every other one). Ignores: modules, devices.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genre.errors import BaseModelError, first_line
from genre.modules.base.kinds import need_kind
from genre.modules.base.packaged import BASES, prepare_base, prepared_base
from genre.modules.base.quiet import quiet


@dataclass(frozen=True)
class BaseDescription:
    """A base without its weights; for the attributes see `Base`.

    Attributes:
        full_depth: None where its configuration has no layers.
    """

    name: str
    tokenizer: Any
    bidirectional: bool
    max_tokens: int | None
    full_depth: int | None

    @classmethod
    def read(cls, name: str) -> "BaseDescription | None":
        """Read the tokenizer and the configuration of a base that is on this machine; None where it is not.

        Raises:
            BaseModelError: The folder holds no base, or no name, folder or hub id is meant.
        """
        folder: Path | None = Path(name).expanduser()
        assert folder is not None
        if not folder.is_dir():
            if name.count("/") == 1 and not name.startswith((".", "/", "~")):
                return None  # a hub id, which may have to be fetched
            folder = prepared_base(name) if name in BASES else find(name)
        if folder is None:
            return None
        config, tokenizer = read_config(name, folder)
        encoder = is_encoder(config)
        longest = max_row_tokens(config, tokenizer) if encoder else None
        return cls(name, tokenizer, encoder, longest, getattr(config, "num_hidden_layers", None))

    def need_causal(self, what: str) -> None:
        """As `Base.need_causal`."""
        need_causal(self, what)


def need_causal(base: Any, what: str) -> None:
    """Refuse a base, or its description, that reads both ways; see `Base.need_causal`."""
    if base.bidirectional:
        got = f"the encoder {base.name!r}, in which every token sees every other one"
        todo = "an encoder reads labelled texts (tasks of kind text) and nothing else"
        raise BaseModelError(f"{what} needs a causal base", got=got, expected="a GPT-kind base", todo=todo)


def max_row_tokens(config: Any, tokenizer: Any) -> int:
    """The longest row of an encoder."""
    positions = getattr(config, "max_position_embeddings", None)
    limit = tokenizer.model_max_length  # below the positions where a base counts from an offset; 1e30 if unset
    return int(min(filter(None, (positions, limit))))


def read_config(name: str, folder: Path) -> tuple[Any, Any]:
    """The configuration and the tokenizer of a base's folder.

    Raises:
        BaseModelError: The folder holds none, or one of a kind that cannot be a base.
    """
    from transformers import AutoConfig, AutoTokenizer

    with quiet():
        try:
            found = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise BaseModelError(
                f"base {name!r} cannot be read", got=first_line(error), expected="a folder with config.json and a tokenizer"
            ) from None
    need_kind(name, found[0])
    return found


def reads_both_ways(folder: Path) -> bool:
    """Return whether a base's folder is of an encoder; its tokenizer is not read.

    Raises:
        BaseModelError: It has no configuration that transformers knows.
    """
    return is_encoder(_model_config(folder))


def read_depth(folder: Path) -> int | None:
    """The number of layers in the configuration of a base's folder; None where it has none. Raises as `reads_both_ways`."""
    return getattr(_model_config(folder), "num_hidden_layers", None)


def _model_config(folder: Path) -> Any:
    from transformers import AutoConfig

    with quiet():
        try:
            return AutoConfig.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise BaseModelError(
                f"base {folder.name!r} cannot be read", got=first_line(error), expected="a folder with config.json"
            ) from None


def is_encoder(config: Any) -> bool:
    """Return whether a configuration is of an encoder: a masked language model that is not a decoder and has none."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    masked = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return masked and not getattr(config, "is_decoder", False) and not config.is_encoder_decoder


def find(name: str, *, fetch: bool = True) -> Path:
    """The folder of a base: a local path, a base that comes as a package, or a hub snapshot.

    Args:
        name: Of the base.
        fetch: Ask the hub for what is not on this machine: only for names that the user gave.

    Raises:
        BaseModelError: Nothing of that name can be found.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if name in BASES:
        return prepare_base(name)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _snapshot(name, fetch=fetch)
    raise BaseModelError(
        f"no base is called {name!r}",
        expected=f"{', '.join(BASES)}, a folder, or a hub id such as owner/model",
        todo="genre base list shows what comes as a package",
    )


def _snapshot(name: str, *, fetch: bool) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt"]
    try:
        with quiet():
            try:
                return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=True))
            except OSError:
                if not fetch:
                    raise
                return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # the hub client's own tree of network errors is wide
        if not fetch:
            todo = f"the version names it, not you: --base {name} fetches it, or name a local folder"
            raise BaseModelError(f"base {name!r} is not on this machine", expected="a base that is here", todo=todo) from None
        raise BaseModelError(
            f"base {name!r} is not a folder, and the hub does not provide it",
            got=first_line(error).removeprefix("Got: "),
            todo="name a folder on this machine, or a packaged base: genre base list",
        ) from None


def tokenizer_digest(tokenizer: Any) -> str:
    """sha256 of the vocabulary and merges as a tokenizer serializes them."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
