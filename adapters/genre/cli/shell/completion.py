"""What a shell offers for TAB: references, names, tasks and data sets.

Owns: the words that complete, and references in bash, which splits words at `@` and `:`. Ignores: commands and options, which
typer completes, and files, which the shell does. A registry behind a URL is never asked, for TAB must be fast.

    genre explain like@<TAB>        like@candidate  like@latest
"""

import contextlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from genre.errors import GenreError

if TYPE_CHECKING:
    from genre.registry import Registry

REGISTRY_VARIABLE = "GENRE_REGISTRY"
_INSTRUCTION = "_GENRE_COMPLETE"
_SEPARATORS = ("@", ":", "=")
"""Where bash ends a word."""


def complete_refs(context: typer.Context, incomplete: str) -> list[str]:
    """References that begin so: names and their aliases, and versions once a name has its colon."""
    return _in_registry(context, lambda registry: _refs(registry, incomplete))


def complete_names(context: typer.Context, incomplete: str) -> list[str]:
    """Names of the registry that begin so."""
    return _in_registry(context, lambda registry: [name for name in registry.names() if name.startswith(incomplete)])


def complete_tasks(context: typer.Context, incomplete: str) -> list[str]:
    """Tasks of the version that the command names."""
    ref = context.params.get("ref") or next(iter(context.args), None)  # unread where the option still lacks its value
    if not isinstance(ref, str):
        return []
    tasks = _in_registry(context, lambda registry: [str(task["name"]) for task in registry.resolve(ref).manifest.tasks])
    return [task for task in tasks if task.startswith(incomplete)]


def complete_data(incomplete: str) -> list[str]:
    """Packaged data sets, and folders that hold a data set: here, one folder deeper, and beside what is typed."""
    from genre.data.folder import MARKER
    from genre.data.packaged.sources import DATA

    head = incomplete.rpartition("/")[0]
    near = Path(f"{head}/" if incomplete.startswith("/") else head or ".")
    found = [*DATA]
    with contextlib.suppress(OSError):
        for pattern in (f"*/{MARKER}", f"*/*/{MARKER}"):
            found += sorted(str(marker.parent) for marker in near.glob(pattern))
    return [each for each in found if each.startswith(incomplete)]


def _in_registry(context: typer.Context, look: Callable[["Registry"], list[str]]) -> list[str]:
    """What is found in the registry that the command line names; nothing if it is remote or cannot be read."""
    given = context.params.get("registry")
    url = str(given or os.environ.get(REGISTRY_VARIABLE) or "registry")
    if "://" in url:
        return []
    from genre.registry import Registry

    try:
        return look(Registry(url))
    except (GenreError, OSError):
        return []


def _refs(registry: "Registry", incomplete: str) -> list[str]:
    name, colon, _ = incomplete.partition(":")
    if colon:
        found = [f"{name}:{version}" for version in registry.versions(name)]
    else:
        names = [each for each in registry.names() if each.startswith(name.partition("@")[0])]
        found = [*names, *(f"{each}@{alias}" for each in names for alias in registry.aliases(each))]
    return [ref for ref in found if ref.startswith(incomplete)]


@contextlib.contextmanager
def whole_words() -> Iterator[None]:
    """A block in which bash completes a reference as one word.

    Bash hands over `like@prod` as three words, and puts what is offered in place of the last one, or of `@` and the last one; so
    the words are joined, and offers lose what stays on the line.
    """
    if os.environ.get(_INSTRUCTION) != "complete_bash":
        yield
        return
    words = join_words(os.environ.get("COMP_WORDS", "").split("\n"), int(os.environ.get("COMP_CWORD") or 0))
    os.environ |= {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)}  # of this process, which ends with it
    offered = io.StringIO()
    try:
        with contextlib.redirect_stdout(offered):
            yield
    finally:
        kept = kept_on_line(words[-1])
        print("\n".join(line.removeprefix(kept) for line in offered.getvalue().splitlines()))


def join_words(words: list[str], place: int) -> list[str]:
    """The words of a command line up to the one that is completed, those that bash split at a separator joined."""
    joined = words[:1]
    for before, word in zip(words, words[1 : place + 1], strict=False):
        if len(joined) > 1 and (before in _SEPARATORS or word in _SEPARATORS):
            joined[-1] += word
        else:
            joined.append(word)
    return joined


def kept_on_line(word: str) -> str:
    """The start of a word that bash leaves on the line when it puts in an offer."""
    value = word.partition("=")[2] if word.startswith("-") else word
    return value[: max(value.rfind("@"), value.rfind(":") + 1, 0)]
