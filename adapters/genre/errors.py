"""The whole tree of errors.

Owns: every error type that the library raises on purpose, their exit codes and the form of their message. Ignores
everything else.

A message says what is wrong, what was got, what was expected and what to do next, on one line:

    >>> print(DataError("column 'rating' is missing", got="user_id, item_id", expected="a rating column",
    ...                 todo="name yours with --map rating=stars"))
    column 'rating' is missing: got user_id, item_id; expected a rating column; name yours with --map rating=stars
"""


class GenreError(Exception):
    """Anything that the library refuses or fails at, with a message of one line.

    Args:
        what: What is wrong.
        got: The offending value, as found.
        expected: What would have been right.
        todo: What the user can do next.
    """

    exit_code = 1

    def __init__(self, what: str, *, got: object = None, expected: object = None, todo: str | None = None) -> None:
        self.what = what
        self.got = got
        self.expected = expected
        self.todo = todo
        parts = [f"got {got}"] if got is not None else []
        parts += [f"expected {expected}"] if expected is not None else []
        parts += [todo] if todo else []
        message = what + (": " + "; ".join(parts) if parts else "")
        super().__init__(visible(" ".join(message.split())))


_HIDDEN = (*range(9), *range(11, 32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
"""Controls of terminals other than tab and newline, and the marks that turn the order of letters."""
_WRITTEN_OUT = {code: ascii(chr(code))[1:-1] for code in _HIDDEN}


def visible(text: str) -> str:
    """Return a text of somebody else's for a terminal: what would move the cursor, colour or reorder it is written out."""
    return text.translate(_WRITTEN_OUT)


def fault_of_file(error: Exception) -> str:
    """What is wrong with a file that could not be read, in words: the system's reason, or the line of a parser's complaint."""
    mark = getattr(error, "problem_mark", None)
    if mark is not None:  # of YAML
        return f"line {mark.line + 1}: {getattr(error, 'problem', None) or 'it cannot be understood'}"
    if isinstance(error, UnicodeDecodeError):
        return "bytes that are no text in UTF-8"
    if isinstance(error, IsADirectoryError):
        return "a folder"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    return first_line(error)


_KINDS = {dict: "a mapping", list: "a list", str: "plain text", bool: "true or false", int: "a number", float: "a number"}


def kind_of(value: object) -> str:
    """What a value of a YAML or JSON file is, in words."""
    return "nothing" if value is None else _KINDS.get(type(value), f"a {type(value).__name__}")


def first_line(error: BaseException, most: int = 200) -> str:
    """The first line of a foreign error for a message of our own, cut to `most` characters; its type if it has no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:most]


class InputError(GenreError):
    """User input that cannot be used (exit code 2)."""

    exit_code = 2


class DataError(InputError):
    """A log, a catalogue or a split is not usable."""


class RecipeError(InputError):
    """A recipe has a wrong key or value.

    Attributes:
        path: The key, dotted, where the error is of one; empty where keys do not go together.
    """

    path = ""


class BaseModelError(InputError):
    """A base model cannot be found, loaded or used as asked."""


class RequestError(InputError):
    """One request to an engine is wrong; others of the same batch go on."""


class RegistryError(InputError):
    """A reference, a name, a version or an alias is wrong."""


class NotFoundError(RegistryError):
    """No such adapter, version, alias or store."""


class ManifestError(RegistryError):
    """A version does not fit what it is loaded on; the message names the field and both values."""


class IntegrityError(RegistryError):
    """A stored version is damaged or unsafe, and is not loaded."""


class TrustError(IntegrityError):
    """A version or an alias move is not signed by a trusted key, and the policy asks for that."""


class ConflictError(RegistryError):
    """Another writer was first."""


class QualityError(RegistryError):
    """A promotion, merge or refresh does not reach the quality that was asked for."""


class JobError(GenreError):
    """The input was right but the job failed (exit code 1)."""


class InterruptedJobError(JobError):
    """The user stopped the job; what it had done is kept, and it can go on."""


class DownloadError(JobError):
    """A package could not be fetched or does not have the pinned checksum."""


class DiskError(JobError):
    """The disk is full or not writable; nothing half-written is left."""


class DivergedError(JobError):
    """Training met a loss, gradient or weight that is not finite."""
