"""PEFT's LoRA format: plain LoRA, which an adapter slot holds exactly; anything else is refused with the reason.

Owns: the checks of `adapter_config.json` and of the tensors of `adapter_model.safetensors` against it, PEFT's rule for patterns.
Ignores: bases, torch.
One real pair of tensors, at rank 8:

    base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight  (8, 576)     # (rank, in)
    base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight  (576, 8)     # (out, rank)
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genre.errors import IntegrityError
from genre.registry.limits import MAX_CONFIG_BYTES, MAX_RANK, parse_json
from genre.registry.weights.tensors import FLOATS, Content, Tensor, read_header

CONFIG = "adapter_config.json"
ADAPTER = "adapter_model.safetensors"
PREFIX = "base_model.model."
_BIN = "adapter_model.bin"
_PATH = r"base_model\.model\.([A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*)"
_KEY = re.compile(rf"{_PATH}\.lora_([AB])\.weight", re.ASCII)
_WHOLE_KEY = re.compile(rf"(?!.*\.lora_){_PATH}\.weight", re.ASCII)
# A repeated group is where regular expressions go exponential; PEFT's patterns are module names and do not need one.
_PATTERN = re.compile(r"[A-Za-z0-9_.\\^$|()\[\]*+?-]{1,1024}", re.ASCII)
_MAX_PATTERNS = 10_000
_MAX_QUANTIFIERS = 3
_MAX_STEPS = 500_000_000
_LEAST_STEPS = 100

# Config fields that change what the weights mean, and the reason why A and B alone cannot express it.
_REFUSED: dict[str, str] = {
    "use_dora": "DoRA rescales the base's columns, which adding B A cannot",
    "lora_bias": "it adds a bias beside B",
    "modules_to_save": "it replaces whole modules (an lm_head, embeddings, a classifier) of the shared base",
    "trainable_token_indices": "it changes the shared base's embeddings",
    "target_parameters": "it changes parameters other than those of linears",
    "layer_replication": "it changes the number of layers of the shared base",
    "use_qalora": "QA-LoRA pools its input",
    "alora_invocation_tokens": "it is active only after a certain token",
    "arrow_config": "it routes between adapters",
    "use_bdlora": "its B is block-diagonal",
    "kasa_config": "it truncates the shared base's weights",
    "velora_config": "it changes the forward pass",
    "monteclora_config": "it samples its weights",
    "megatron_config": "it is for Megatron's parallel layers",
    "auto_mapping": "it names code to import",
}
# Initialisations that subtract something from the base's own weights: A and B alone do not give the result.
_REFUSED_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga", "eva_residual")
_IMPORT = "genre registry import writes the config anew without it"
_MERGE = "or merge it into its base with PEFT (merge_and_unload) and name the merged folder as a recipe's base"


@dataclass(frozen=True)
class LoraModule:
    """One adapted linear: its path in the base, A (rank, in) and B (out, rank), and the alpha that scales B A."""

    path: str
    a: Tensor
    b: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        """The rank of B A."""
        return self.a.shape[0]


@dataclass(frozen=True)
class Adapter:
    """A checked adapter.

    Attributes:
        config: Of PEFT.
        modules: In the order of their tensors.
        whole: Matrices of the base that lie beside the update, by the module's path; a stored adapter has none.
    """

    config: dict[str, Any]
    modules: list[LoraModule]
    whole: dict[str, Tensor]

    @property
    def swapped(self) -> bool:
        """True if the base keeps weights as (in, out), as GPT-2 does."""
        return bool(self.config.get("fan_in_fan_out"))


def read_adapter(folder: Path, *, foreign: bool = False) -> Adapter:
    """Read and check an adapter's config and the header of its weights.

    Args:
        folder: Where the two files are.
        foreign: As others save it, before its config is written anew: it may name the class that it was trained on, carry
            matrices of the base, and have a rank that another of its patterns than the first one gives.

    Raises:
        IntegrityError: It is not plain LoRA; the message has the reason.
    """
    for name in (CONFIG, ADAPTER):
        if not (folder / name).is_file() or (folder / name).is_symlink():
            raise _missing(folder, name)
    if (folder / CONFIG).stat().st_size > MAX_CONFIG_BYTES:
        raise IntegrityError(f"{CONFIG} is too large", expected=f"at most {MAX_CONFIG_BYTES:,} bytes")
    raw = parse_json((folder / CONFIG).read_bytes(), CONFIG, limit=MAX_CONFIG_BYTES)
    header = read_header(folder / ADAPTER, FLOATS)
    if not foreign:
        config = check_config(raw)
        return Adapter(config, check_pairs(config, header), {})
    config = check_config({key: value for key, value in raw.items() if key != "auto_mapping"} if isinstance(raw, dict) else raw)
    names = {name: match[1].removesuffix(".base_layer") for name in header if (match := _WHOLE_KEY.fullmatch(name))}
    rest = {name: tensor for name, tensor in header.items() if name not in names}
    whole = {path: header[name] for name, path in names.items()}
    return Adapter(config, check_pairs(config, rest, any_match=True), whole)


def check_config(config: object) -> dict[str, Any]:
    """Return the config if it is plain LoRA, which an adapter slot holds exactly; IntegrityError with the reason otherwise."""
    if not isinstance(config, dict):
        raise _bad("is not a mapping", type(config).__name__, "PEFT's LoraConfig")
    if config.get("peft_type") != "LORA":
        got, todo = repr(config.get("peft_type"))[:80], "peft.save_as_lora makes LoRA of most other kinds"
        raise _bad("is not of LoRA", got, "LORA, the only kind that is supported", todo)
    for field, reason in _REFUSED.items():
        if config.get(field) not in (None, False, {}, []):
            todo = _IMPORT if field == "auto_mapping" else f"train it again without {field}, {_MERGE}"
            raise _bad(f"sets {field}", repr(config[field])[:80], f"nothing there: {reason}", todo)
    if config.get("bias", "none") != "none":
        expected, todo = "none: biases belong to the shared base", f"train it again with bias none, {_MERGE}"
        raise _bad("trains biases", repr(config["bias"])[:80], expected, todo)
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_REFUSED_INITS):
        todo = "save it with path_initial_model_for_weight_conversion, which makes plain LoRA of it"
        raise _bad("starts from changed base weights", init[:80], "plain LoRA, as PEFT's save_pretrained converts it", todo)
    _check_rank("r", config.get("r"))
    _check_number("lora_alpha", config.get("lora_alpha"))
    for field, check in (("rank_pattern", _check_rank), ("alpha_pattern", _check_number)):
        _check_pattern(field, config.get(field) or {}, check)
    if not isinstance(config.get("use_rslora", False), bool) or not isinstance(config.get("fan_in_fan_out", False), bool):
        raise _bad("has a wrong switch", "use_rslora or fan_in_fan_out", "true or false")
    return config


def check_pairs(config: Mapping[str, Any], header: Mapping[str, Tensor], *, any_match: bool = False) -> list[LoraModule]:
    """Pair the A's with the B's and check them against a checked config, by shape only.

    Args:
        config: The config.
        header: The tensors.
        any_match: Accept a rank that any of the matching patterns gives, not the first one alone.

    Raises:
        IntegrityError: A tensor of another kind, a lone A or B, or a shape or rank that differs from the config's.
    """
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, tensor in header.items():
        match = _KEY.fullmatch(name)
        if match is None:
            raise _odd_tensor(name)
        pairs.setdefault(match[1], {})[match[2]] = tensor
    ranks, alphas = (Patterns(config.get(field), pairs) for field in ("rank_pattern", "alpha_pattern"))
    return [_module(config, path, pair, ranks, alphas, any_match=any_match) for path, pair in pairs.items()]


def check_learned(modules: list[LoraModule], content: Mapping[str, Content]) -> None:
    """Check that the values are finite and that B A is not zero everywhere.

    PEFT starts B at zero, so an adapter whose checkpoint missed the trained weights loads, runs, and does nothing: the
    published TALLRec adapter was found so (its issue 41).

    Raises:
        IntegrityError: A weight is not finite, or no weight was learned.
    """
    for name, state in content.items():
        if not state.finite:
            todo = "train it again at a lower learning rate"
            raise IntegrityError("a weight is not finite", got=f"nan or inf in {name}", todo=todo)
    if all(content[module.a.name].zero or content[module.b.name].zero for module in modules):
        raise IntegrityError(
            "the adapter has no learned weights",
            got=f"B or A all zero in each of {len(modules)} modules",
            expected="a product B A that is not zero in at least one",
            todo="save the trained weights; as it is, it equals the base",
        )


def _module(
    config: Mapping[str, Any], path: str, pair: dict[str, Tensor], by_rank: "Patterns", by_alpha: "Patterns", *, any_match: bool
) -> LoraModule:
    if pair.keys() != {"A", "B"}:
        raise IntegrityError(f"LoRA of {path} is incomplete", got=f"only lora_{''.join(pair)}", expected="lora_A and lora_B")
    a, b = pair["A"].shape, pair["B"].shape
    if len(a) != 2 or len(b) != 2 or a[0] != b[1] or 0 in a + b:
        raise IntegrityError(f"LoRA of {path} has wrong shapes", got=f"A {a}, B {b}", expected="(rank, in) and (out, rank)")
    if a[0] > MAX_RANK:
        raise IntegrityError(f"LoRA of {path} has too high a rank", got=a[0], expected=f"at most {MAX_RANK}")
    ranks = list(by_rank.matching(path).values()) or [config["r"]]
    if a[0] not in (ranks if any_match else ranks[:1]):
        raise IntegrityError(f"LoRA of {path} has another rank than its config", got=a[0], expected=ranks[0])
    alphas = by_alpha.matching(path).values()
    return LoraModule(path, pair["A"], pair["B"], float(next(iter(alphas), config["lora_alpha"])))


class Patterns:
    """The patterns of a config field, compiled once, after a look at how much work they are.

    Args:
        patterns: Values by pattern; None for none.
        paths: The modules that will be looked up.

    Raises:
        IntegrityError: So many patterns over so many and so long names would take seconds.
    """

    def __init__(self, patterns: Mapping[str, Any] | None, paths: Iterable[str]) -> None:
        patterns = patterns or {}
        compound: dict[int, int] = {}
        for key in patterns:
            quantifiers = _quantifiers(key)
            compound[quantifiers] = compound.get(quantifiers, 0) + 1
        sizes = [(len(path), path.count(".") + 1) for path in paths] if patterns else []
        steps = sum(count * _steps(length, parts, q) for q, count in compound.items() for length, parts in sizes)
        if steps > _MAX_STEPS:
            got, expected = f"{len(patterns):,} patterns over {len(sizes):,} modules", f"at most {_MAX_STEPS:,} steps of matching"
            raise _bad("has too many patterns for its modules", got, expected, "name modules in full, or drop patterns")
        self._compiled = [(key, re.compile(rf"(.*\.)?({key})$"), value) for key, value in patterns.items()]

    def matching(self, path: str) -> dict[str, Any]:
        """The patterns that match the end of a path, on a dot, in the file's order; PEFT takes the first (`get_pattern_key`)."""
        return {key: value for key, pattern, value in self._compiled if pattern.match(path)}


def _quantifiers(key: str) -> int:
    return sum(map(key.count, "*+?"))


def _steps(length: int, parts: int, quantifiers: int) -> int:
    """Steps of a match at most, some nanoseconds each: backtracking tries all ways to share a name among the quantifiers."""
    return _LEAST_STEPS + length**quantifiers * parts // math.factorial(quantifiers + 1)


def _check_rank(field: str, value: object) -> None:
    if type(value) is not int or not 1 <= value <= MAX_RANK:
        raise _bad(f"has a wrong {field}", repr(value)[:80], f"a rank of 1 to {MAX_RANK}")


def _check_number(field: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e9:
        raise _bad(f"has a wrong {field}", repr(value)[:80], "a number")


def _check_pattern(field: str, patterns: object, check: Any) -> None:
    if not isinstance(patterns, dict) or len(patterns) > _MAX_PATTERNS:
        raise _bad(f"has a wrong {field}", type(patterns).__name__, f"a mapping of at most {_MAX_PATTERNS:,} module names")
    for key, value in patterns.items():
        check(f"{field} of {key[:80]!r}", value)
        repeated = re.search(r"[)\]][*+?]|[*+?][*+?]", key) or _quantifiers(key) > _MAX_QUANTIFIERS
        try:
            valid = _PATTERN.fullmatch(key) is not None and not repeated and re.compile(key) is not None
        except re.error:
            valid = False
        if not valid:
            raise _bad(f"has a wrong {field}", repr(key)[:80], "module names, or a simple pattern for them")


def _odd_tensor(name: str) -> IntegrityError:
    reasons = {
        "lora_magnitude_vector": _REFUSED["use_dora"],
        "lora_embedding_": f"an adapter changes linears here, not embeddings; train it again on linears only, {_MERGE}",
        "modules_to_save": "it would replace whole modules of the shared base",
        "hada_": "this is LoHa, not LoRA",
        "lokr_": "this is LoKr, not LoRA",
        ".bias": "biases belong to the shared base",
    }
    reason = next((text for part, text in reasons.items() if part in name), "it is neither an A nor a B")
    if re.search(r"\.lora_[AB]\.\w+\.weight", name):
        reason = "it has the adapter's name in it, as a state_dict has: save it with PEFT's save_pretrained"
    expected = f"{PREFIX}….lora_A.weight or lora_B: {reason}"
    return IntegrityError("the adapter holds a tensor that is not plain LoRA", got=name[:200], expected=expected)


def _missing(folder: Path, name: str) -> IntegrityError:
    expected = f"a PEFT adapter's {CONFIG} and {ADAPTER}"
    if (folder / name).is_symlink():
        return IntegrityError(f"{name} is missing or a link", got="a link", expected=expected, todo="copy the folder with cp -rL")
    if name == ADAPTER and (folder / _BIN).exists():
        expected += " (a .bin is a pickle and is never opened: save it as safetensors)"
        todo = "PeftModel.from_pretrained(base, folder).save_pretrained(other) writes it so"
        return IntegrityError(f"{name} is missing or a link", got=_BIN, expected=expected, todo=todo)
    return IntegrityError(f"{name} is missing or a link", expected=expected)


def _bad(what: str, got: object, expected: object, todo: str | None = None) -> IntegrityError:
    return IntegrityError(f"adapter_config.json {what}", got=got, expected=expected, todo=todo)
