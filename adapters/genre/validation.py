"""Validation errors of pydantic as one line each, in the library's words.

Owns: the translation of a `ValidationError`. Ignores: models.

    a request has an unknown field: got histroy; expected adapter, history, …
    history[3].item_id cannot be used: got 7; expected a text or an object
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from genre.errors import InputError, RecipeError

_Error = TypeVar("_Error", bound=InputError)

_KINDS = {
    "string": "a text",
    "int": "a whole number",
    "int_from_float": "a whole number",
    "finite_number": "a finite number",
    "tuple": "a list",
    "float": "a number",
    "bool": "true or false",
    "list": "a list",
    "dict": "an object",
    "model": "an object",
    "dataclass": "an object",
    "multiple_argument_values": "one value",
    "unexpected_positional_argument": "fewer arguments",
}
_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
_BOUNDS = {"greater_than_equal": "at least {ge:g}", "greater_than": "more than {gt:g}", "less_than_equal": "at most {le:g}"}
_BOUNDS["less_than"] = "less than {lt:g}"
_LENGTHS = {"too_short": "a list of at least {min_length:,}", "too_long": "a list of at most {max_length:,}"}
PATTERNS = {
    r"^[a-z0-9][a-z0-9_.-]{0,63}$": "1 to 64 of a-z 0-9 _ . - that begin with a letter or digit",
    r"^[a-z][a-z0-9_]{0,63}$": "1 to 64 of a-z 0-9 _ that begin with a letter",
    r"^\s*\d+(-\d+)?(\s*,\s*\d+(-\d+)?)*\s*$": "rows such as 0-99 or 3,7,9",
}
"""The forms of texts, in words."""
_LENGTHS |= {"string_too_short": "at least {min_length:,} characters", "string_too_long": "at most {max_length:,} characters"}


def refusal(error: ValidationError, subject: str, fields: Sequence[str], kind: type[_Error]) -> _Error:
    """Describe the first thing that is wrong; unknown fields come first, since they explain a field that is missing.

    Args:
        error: Raised by a model.
        subject: The name of the whole value, such as `a request`.
        fields: The names of the model's fields, in order.
        kind: The type of error to return.
    """
    found = error.errors(include_url=False)
    first = next((one for one in found if one["type"] in _UNKNOWN), found[0])
    path = _path(first, fields)
    if first["type"] in _UNKNOWN:
        return kind(f"{subject} has an unknown field", got=path[:80], expected=", ".join(fields))
    if first["type"] == "missing":
        return kind(f"{subject} has no {path}")
    if first["type"] == "json_invalid":
        return kind(f"{subject} is not JSON", got=first["ctx"]["error"])
    if not path:
        return kind(f"{subject} is not a JSON object", got=_shown(first["input"]), expected="an object")
    if first["type"] in ("too_long", "too_short"):
        context = first["ctx"]
        bound = f"at most {context['max_length']:,}" if first["type"] == "too_long" else f"at least {context['min_length']:,}"
        return kind(f"{path} has a wrong length", got=f"{context['actual_length']:,}", expected=bound)
    ways = [expected(one) for one in found if _path(one, fields) == path]
    return kind(f"{path} cannot be used", got=_shown(first["input"]), expected=" or ".join(dict.fromkeys(ways)))


def _path(error: ErrorDetails, fields: Sequence[str]) -> str:
    """`history[3].item_id`, without the names of the branches of a union."""
    path = ""
    for place, part in enumerate(error["loc"]):
        if place == 0 and isinstance(part, int):  # a positional argument
            path = fields[part] if part < len(fields) else f"argument {part + 1}"
        elif isinstance(part, int):
            path += f"[{part}]"
        elif place == 0 or not (place == len(error["loc"]) - 1 and _is_branch(part)):
            path += f".{part}" if path else part
    return path


def _is_branch(part: str) -> bool:
    return part in ("str", "int", "float", "[key]") or part.startswith("dict[")


def expected(error: Mapping[str, Any]) -> str:
    """What a field takes, in the library's words, from one of pydantic's errors."""
    kind, context = error["type"], error.get("ctx", {})
    if kind in _BOUNDS:
        return _BOUNDS[kind].format(**context)
    if kind in _LENGTHS:
        return _LENGTHS[kind].format(**context)
    if kind == "string_pattern_mismatch":
        return PATTERNS.get(context["pattern"], f"a text of the form {context['pattern']}")
    if kind in ("list_type", "tuple_type") and isinstance(error.get("input"), str):
        return f"a list, such as [{error['input'][:40]}]"
    if kind == "literal_error":
        return str(context["expected"])
    if kind == "missing":
        return "a value: it has none"
    if kind == "value_error":
        return str(error["msg"]).removeprefix("Value error, ")
    if kind in _UNKNOWN:
        return "no field of this name"
    return _KINDS.get(kind.removesuffix("_type").removesuffix("_parsing"), str(error["msg"]).removeprefix("Input should be "))


def _shown(value: Any) -> str:
    return repr(value)[:80]


def explained(error: ValidationError, where: str, model: type[BaseModel]) -> RecipeError:
    """Describe the first thing that is wrong with a nested model of sections, such as a recipe; unknown keys come first.

    Args:
        error: Raised by the model.
        where: The name of the whole, such as a file.
        model: The model, whose keys are proposed for misspelt ones.
    """
    found = [one for one in error.errors() if one["type"] != "too_short" or not _follows(one, error.errors())]
    first = next((one for one in found if one["type"] == "extra_forbidden"), found[0])  # it explains a key that is missing
    path = ".".join(str(part) for part in first["loc"] if not str(part).startswith(("literal[", "tuple[")))
    if first["type"] == "extra_forbidden":
        parent = [part for part in first["loc"][:-1] if isinstance(part, str)]
        known = _known_keys(model, parent)
        word = str(first["loc"][-1])
        near = _nearest(word, known) or (None if parent else _in_section(model, word))
        todo = f"did you mean {near!r}?" if near else None
        return RecipeError(f"{where}: unknown key {path!r}", got=str(first["loc"][-1]), expected=", ".join(known), todo=todo)
    got = first.get("input")
    more = f" ({len(found) - 1} more)" if len(found) > 1 else ""
    shown = None if isinstance(got, Mapping | BaseModel) else repr(got)[:80]
    what = f"{where}: {path}" if path else where
    if first["type"] == "missing":
        refused = RecipeError(f"{where}: the key {path!r} is missing{more}")
    elif first["type"] == "value_error":  # a sentence of a validator of ours
        refused = RecipeError(f"{what}: {expected(first)}{more}", got=shown)
    else:
        refused = RecipeError(what, got=shown, expected=expected(first) + more)
    refused.path = path
    return refused


def _follows(short: ErrorDetails, errors: Sequence[ErrorDetails]) -> bool:
    """Return whether a list is too short only because pydantic leaves out the entries that are wrong."""
    count = len(short["loc"])
    return any(one["loc"][:count] == short["loc"] and len(one["loc"]) > count for one in errors)


def _known_keys(model: type[BaseModel], path: list[str]) -> list[str]:
    """The keys of the section at a path."""
    for part in path:
        model = _model_in(model.model_fields[part].annotation) or model
    return sorted(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model of a field's type, such as that of the elements of a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for each in get_args(annotation) if (found := _model_in(each)) is not None), None)


def _in_section(model: type[BaseModel], word: str) -> str | None:
    """The dotted path of a key that is written without its section."""
    sections = ((name, getattr(field.annotation, "model_fields", {})) for name, field in model.model_fields.items())
    return next((f"{name}.{word}" for name, keys in sections if word in keys), None)


def _nearest(word: str, known: list[str]) -> str | None:
    from difflib import get_close_matches

    return next(iter(get_close_matches(word, known, n=1, cutoff=0.6)), None)
