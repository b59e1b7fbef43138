"""PEFT's LoRA format: plain LoRA, which an adapter slot holds exactly; anything else is refused with the reason.

Owns: the checks of `adapter_config.json` and of the tensors of `adapter_model.safetensors` against it. Ignores: bases, torch.
One real pair of tensors, at rank 8:

    base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight  (8, 576)     # (rank, in)
    base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight  (576, 8)     # (out, rank)
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genre.errors import IntegrityError
from genre.registry.limits import MAX_CONFIG_BYTES, MAX_RANK, parse_json
from genre.registry.weights.tensors import FLOATS, Content, Tensor, read_header

CONFIG = "adapter_config.json"
ADAPTER = "adapter_model.safetensors"
PREFIX = "base_model.model."
_KEY = re.compile(r"base_model\.model\.([A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*)\.lora_([AB])\.weight", re.ASCII)
# A repeated group is where regular expressions go exponential; PEFT's patterns are module names and do not need one.
_PATTERN = re.compile(r"[A-Za-z0-9_.\\^$|()\[\]*+?-]{1,1024}", re.ASCII)
_MAX_PATTERNS = 10_000
_MAX_QUANTIFIERS = 3

# Config fields that change what the weights mean, and the reason why A and B alone cannot express it.
_REFUSED: dict[str, str] = {
    "use_dora": "DoRA rescales the base's columns, which adding B A cannot",
    "lora_bias": "it adds a bias beside B",
    "modules_to_save": "it replaces whole modules of the shared base",
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
    """A checked adapter: its config, and its modules in the order of their tensors."""

    config: dict[str, Any]
    modules: list[LoraModule]

    @property
    def swapped(self) -> bool:
        """True if the base keeps weights as (in, out), as GPT-2 does."""
        return bool(self.config.get("fan_in_fan_out"))


def read_adapter(folder: Path) -> Adapter:
    """Read and check an adapter's config and the header of its weights; IntegrityError if it is not plain LoRA."""
    for name in (CONFIG, ADAPTER):
        if not (folder / name).is_file() or (folder / name).is_symlink():
            pickled = " (a .bin is a pickle and is never opened: save it as safetensors)" if name == ADAPTER else ""
            raise IntegrityError(f"{name} is missing or a link", expected=f"a PEFT adapter's {CONFIG} and {ADAPTER}{pickled}")
    if (folder / CONFIG).stat().st_size > MAX_CONFIG_BYTES:
        raise IntegrityError(f"{CONFIG} is too large", expected=f"at most {MAX_CONFIG_BYTES:,} bytes")
    config = check_config(parse_json((folder / CONFIG).read_bytes(), CONFIG, limit=MAX_CONFIG_BYTES))
    return Adapter(config, check_pairs(config, read_header(folder / ADAPTER, FLOATS)))


def check_config(config: object) -> dict[str, Any]:
    """Return the config if it is plain LoRA, which an adapter slot holds exactly; IntegrityError with the reason otherwise."""
    if not isinstance(config, dict):
        raise _bad("is not a mapping", type(config).__name__, "PEFT's LoraConfig")
    if config.get("peft_type") != "LORA":
        raise _bad("is not of LoRA", repr(config.get("peft_type"))[:80], "LORA, the only kind that is supported")
    for field, reason in _REFUSED.items():
        if config.get(field) not in (None, False, {}, []):
            raise _bad(f"sets {field}", repr(config[field])[:80], f"nothing there: {reason}")
    if config.get("bias", "none") != "none":
        raise _bad("trains biases", repr(config["bias"])[:80], "none: biases belong to the shared base")
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_REFUSED_INITS):
        raise _bad("starts from changed base weights", init[:80], "plain LoRA, as PEFT's save_pretrained converts it")
    _check_rank("r", config.get("r"))
    _check_number("lora_alpha", config.get("lora_alpha"))
    for field, check in (("rank_pattern", _check_rank), ("alpha_pattern", _check_number)):
        _check_pattern(field, config.get(field) or {}, check)
    if not isinstance(config.get("use_rslora", False), bool) or not isinstance(config.get("fan_in_fan_out", False), bool):
        raise _bad("has a wrong switch", "use_rslora or fan_in_fan_out", "true or false")
    return config


def check_pairs(config: Mapping[str, Any], header: Mapping[str, Tensor]) -> list[LoraModule]:
    """Pair the A's with the B's and check them against a checked config, by shape only.

    Raises:
        IntegrityError: A tensor of another kind, a lone A or B, or a shape or rank that differs from the config's.
    """
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, tensor in header.items():
        match = _KEY.fullmatch(name)
        if match is None:
            raise _odd_tensor(name)
        pairs.setdefault(match[1], {})[match[2]] = tensor
    return [_module(config, path, pair) for path, pair in pairs.items()]


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


def _module(config: Mapping[str, Any], path: str, pair: dict[str, Tensor]) -> LoraModule:
    if pair.keys() != {"A", "B"}:
        raise IntegrityError(f"LoRA of {path} is incomplete", got=f"only lora_{''.join(pair)}", expected="lora_A and lora_B")
    a, b = pair["A"].shape, pair["B"].shape
    if len(a) != 2 or len(b) != 2 or a[0] != b[1] or 0 in a + b:
        raise IntegrityError(f"LoRA of {path} has wrong shapes", got=f"A {a}, B {b}", expected="(rank, in) and (out, rank)")
    if a[0] > MAX_RANK:
        raise IntegrityError(f"LoRA of {path} has too high a rank", got=a[0], expected=f"at most {MAX_RANK}")
    rank = _lookup(config.get("rank_pattern") or {}, path, config["r"])
    if a[0] != rank:
        raise IntegrityError(f"LoRA of {path} has another rank than its config", got=a[0], expected=rank)
    alpha = float(_lookup(config.get("alpha_pattern") or {}, path, config["lora_alpha"]))
    return LoraModule(path, pair["A"], pair["B"], alpha)


def _lookup(patterns: Mapping[str, Any], path: str, default: Any) -> Any:
    """PEFT's rule (`get_pattern_key`): the first pattern that matches the end of the path, on a dot."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", path)), default)


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
        repeated = re.search(r"[)\]][*+?]|[*+?][*+?]", key) or sum(map(key.count, "*+?")) > _MAX_QUANTIFIERS
        try:
            valid = _PATTERN.fullmatch(key) is not None and not repeated and re.compile(key) is not None
        except re.error:
            valid = False
        if not valid:
            raise _bad(f"has a wrong {field}", repr(key)[:80], "module names, or a simple pattern for them")


def _odd_tensor(name: str) -> IntegrityError:
    reasons = {
        "lora_magnitude_vector": _REFUSED["use_dora"],
        "lora_embedding_": "an adapter changes linears here, not embeddings",
        "modules_to_save": "it would replace whole modules of the shared base",
        "hada_": "this is LoHa, not LoRA",
        "lokr_": "this is LoKr, not LoRA",
        ".bias": "biases belong to the shared base",
    }
    reason = next((text for part, text in reasons.items() if part in name), "it is neither an A nor a B")
    expected = f"{PREFIX}….lora_A.weight or lora_B: {reason}"
    return IntegrityError("the adapter holds a tensor that is not plain LoRA", got=name[:200], expected=expected)


def _bad(what: str, got: object, expected: object) -> IntegrityError:
    return IntegrityError(f"adapter_config.json {what}", got=got, expected=expected)
