"""Client of a server that serves this folder's adapter: scores from the probabilities of its label words.

Needs `prompt.json`, `items.jsonl` and `canaries.json` beside it, Python, and nothing else. One row in, one row out:

    $ python client.py --url http://127.0.0.1:8000 < requests.jsonl
    {"id": "1", "history": [{"item_id": "50", "rating": 5}], "candidates": ["181", {"title": "A new film"}]}
    {"id": "1", "results": [{"item_id": "181", "score": 0.83}, {"item_id": "A new film", "score": 0.41}]}

A prompt is token ids, put together part by part as in training: begin token, instruction, then for each event its item's
text, ":" and a word for the feedback, if the adapter reads one; last the candidate's text and ":". The server is asked for one
token among the label words only, and their log-probabilities give the score.

Servers have been found to take an adapter's name and answer with the base. So the first request sends canaries: prompts whose
answers by the base and by the adapter are known and differ. A server that does not answer as the adapter does is refused.
"""

import argparse
import bisect
import http.client
import json
import math
import string
import sys
import urllib.parse
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

_ROW = ("id", "adapter", "task", "history", "candidates", "user")
_EVENT = ("item_id", "item", "impression_id", "timestamp", "rating", "click", "behaviour")
AT_ONCE = 256
"""Prompts of one call to the server."""
CANARIES = "canaries.json"
_RARE = 1 / 50
_LEAST = 1e-9


class ClientError(Exception):
    """A request that cannot be sent, or a server that does not answer as it should."""


class WrongServer(ClientError):
    """A server that does not answer as the adapter does."""


class Server(ABC):
    """A server's HTTP interface: token ids of texts, probabilities of label words.

    Args:
        url: The server.
        prompt: `model`, the name under which the server has the adapter; read at each request.
        timeout: Seconds to wait for an answer.
    """

    kind = "server"

    def __init__(self, url: str, prompt: Mapping[str, Any], *, timeout: float = 600) -> None:
        self.prompt = prompt
        self.url = url
        parts = urllib.parse.urlsplit(url)
        try:
            kind = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}[parts.scheme]
            if not parts.hostname:
                raise ValueError
            self._connection = kind(parts.hostname, parts.port, timeout=timeout)
        except (KeyError, ValueError):
            raise ClientError(f"not the URL of a server: got {url!r}; expected such as http://127.0.0.1:8000") from None
        self._path = parts.path.rstrip("/")

    def close(self) -> None:
        """Close the connection; the next request opens it again."""
        self._connection.close()

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens."""
        body = {"model": self.prompt["model"], "prompt": text, "add_special_tokens": False}
        return list(self.post("/tokenize", body)["tokens"])

    def probabilities(self, prompts: Sequence[list[int]], words: Sequence[int]) -> list[list[float]]:
        """For each prompt the probability of each label word among all of them."""
        try:
            return [_shares(row) for row in self.log_probabilities(prompts, words)] if prompts else []
        except (KeyError, IndexError, TypeError, ValueError) as error:
            got = f"{type(error).__name__}: {error}"
            raise ClientError(f"the server's answer has another form: got {got}; is this a {self.kind} server?") from None

    @abstractmethod
    def log_probabilities(self, prompts: Sequence[list[int]], words: Sequence[int]) -> Iterable[list[float]]:
        """For each prompt the log-probability of each label word, up to a constant."""

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Send a request, and return the JSON of its answer."""
        data, where = json.dumps(body).encode(), self._connection.host
        try:
            self._connection.request("POST", self._path + path, data, {"Content-Type": "application/json"})
            response = self._connection.getresponse()
            text = response.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise ClientError(f"no answer from {where}:{self._connection.port}: got {error}; is the server up?") from None
        if response.status != 200:
            raise ClientError(f"the server refused {path}: got {response.status} {text.decode(errors='replace')[:200]}")
        try:
            return json.loads(text)
        except ValueError:
            got = f"got {text[:80]!r}; is this a {self.kind} server?"
            raise ClientError(f"the server's answer to {path} is not JSON: {got}") from None


class Vllm(Server):
    """vLLM: `/v1/completions` with `allowed_token_ids`, the adapter by the model's name."""

    kind = "vLLM"

    def log_probabilities(self, prompts: Sequence[list[int]], words: Sequence[int]) -> Iterable[list[float]]:
        """See `Server.log_probabilities`."""
        sampling = {"max_tokens": 1, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
        wanted = {"logprobs": len(words), "allowed_token_ids": list(words), "return_tokens_as_token_ids": True}
        answer = self.post("/v1/completions", {"model": self.prompt["model"], "prompt": prompts, **sampling, **wanted})
        for choice in sorted(answer["choices"], key=lambda choice: choice["index"]):
            top = choice["logprobs"]["top_logprobs"][0]
            if missing := [word for word in words if f"token_id:{word}" not in top]:
                raise ClientError(
                    f"the server gives no probability for a label word: got {', '.join(top)}; expected token_id:{missing[0]} "
                    "too; start it with --logprobs-mode processed_logprobs"
                )
            yield [top[f"token_id:{word}"] for word in words]


class Sglang(Server):
    """SGLang: `/generate` with `token_ids_logprob`, the adapter by `lora_path`, which is its name.

    `/v1/score` reads label tokens too, but takes no adapter (SGLang 0.5.23): it answers with the base, whatever its `model` says.
    """

    kind = "SGLang"

    def log_probabilities(self, prompts: Sequence[list[int]], words: Sequence[int]) -> Iterable[list[float]]:
        """See `Server.log_probabilities`."""
        body = {
            "input_ids": prompts,
            "sampling_params": {"max_new_tokens": 0, "temperature": 1.0},
            "return_logprob": True,
            "token_ids_logprob": list(words),
            "lora_path": self.prompt["model"],
        }
        for answer in self.post("/generate", body):
            found = {row[1]: row[0] for row in answer["meta_info"]["output_token_ids_logprobs"][0]}
            yield [found[word] for word in words]


class LlamaCpp(Server):
    """llama.cpp in this process, by the packages `llama-cpp-python` and `tokenizers`; `base.gguf` and `adapter.gguf` are loaded.

    Args:
        folder: The exported folder, as the server's "URL".
        prompt: As of `Server`.
        timeout: Of no use here.
    """

    kind = "llama.cpp"

    def __init__(self, folder: str, prompt: Mapping[str, Any], *, timeout: float = 0) -> None:
        files = {name: str(Path(folder) / f"{name}.gguf") for name in ("base", "adapter")}
        if missing := [file for file in files.values() if not Path(file).is_file()]:
            expected = "a folder of --to gguf, since llama.cpp runs in this process and no server is asked"
            raise ClientError(f"no file for llama.cpp: got {missing[0]}; expected {expected}")
        try:
            import llama_cpp
            from tokenizers import Tokenizer
        except ImportError as error:
            raise ClientError(f"llama.cpp runs by llama-cpp-python and tokenizers: got {error}; install both") from None
        self.prompt = prompt
        self.url = folder
        exact = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}  # the cache is in float16 by default
        self._model = llama_cpp.Llama(files["base"], lora_path=files["adapter"], n_ctx=0, verbose=False, **exact)
        self._logits = llama_cpp.llama_get_logits_ith
        self._tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
        self._tokenizer.encode_special_tokens = bool(prompt.get("control"))

    def close(self) -> None:
        """Free the model."""
        self._model.close()

    def tokenize(self, text: str) -> list[int]:
        """See `Server.tokenize`."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def log_probabilities(self, prompts: Sequence[list[int]], words: Sequence[int]) -> Iterable[list[float]]:
        """See `Server.log_probabilities`."""
        for prompt in prompts:
            held = [int(token) for token in self._model.input_ids[: self._model.n_tokens]]
            same = next((i for i, pair in enumerate(zip(held, prompt[:-1], strict=False)) if pair[0] != pair[1]), None)
            self._model.n_tokens = min(len(held), len(prompt) - 1) if same is None else same  # what both begin with is kept
            self._model.eval(prompt[self._model.n_tokens :])
            logits = self._logits(self._model.ctx, -1)
            yield [logits[word] for word in words]


SERVERS: dict[str, type[Server]] = {"vllm": Vllm, "sglang": Sglang, "llama.cpp": LlamaCpp}
"""Clients by the `server` of `prompt.json`."""


class Prompts:
    """Requests as token ids.

    Args:
        prompt: Of `prompt.json`.
        texts: The items' texts by their ids.
        tokenize: Token ids of a text, without special tokens; asked once for each text.
    """

    def __init__(self, prompt: Mapping[str, Any], texts: Mapping[str, str], tokenize: Callable[[str], list[int]]) -> None:
        self.prompt = prompt
        self.texts = texts
        self._tokenize = tokenize
        self._ids: dict[str, list[int]] = {}

    def history(self, history: Sequence[Mapping[str, Any]], user: Mapping[str, Any]) -> list[int]:
        """The prompt up to the candidate; a history that is too long loses its oldest events."""
        layout = self.prompt["layout"]
        if not isinstance(user, Mapping):
            raise ClientError(f"a user cannot be read: got {user!r:.80}; expected an object with the user's columns")
        if strange := [event for event in history if not isinstance(event, Mapping)]:
            raise ClientError(f"an event cannot be read: got {strange[0]!r:.80}; expected an object with item_id and feedback")
        column = layout["feedback"]
        columns = {name: "unknown" if user.get(name) is None else user[name] for name in self.prompt["user_columns"]}
        parts = string.Formatter().parse(layout["instruction"])  # columns alone: no attribute, no width
        text = "".join(before + ("" if name is None else str(columns[name])) for before, name, _, _ in parts)
        ids = [*self.prompt["start"], *self._tokens(text)] or [0]
        first = max(len(history) - layout["max_events"] + 1, 0)
        if layout.get("window") == "blocks":
            half = max(layout["max_events"] // 2, 1)
            first = half * -(-first // half)
        for event in history[first:]:
            if event.get("impression_id") is not None:
                raise ClientError(
                    "events of one impression do not see each other, which one prompt cannot express: got impression_id; "
                    "expected events without it; ask genre's own engine"
                )
            _check_names(event, _EVENT if column is None else (*_EVENT, column), "an event")
            if "item_id" not in event and "item" not in event:
                raise ClientError(f"an event names no item: got {dict(event)!r:.80}; expected item_id, or item with its columns")
            ids += self.item(event["item_id"] if "item_id" in event else event["item"])
            if column is None:
                continue
            if column not in event:
                raise ClientError(
                    f"an event has no {column}: got {dict(event)!r:.80}; expected {column}, null where it is not known"
                )
            ids += self.feedback(event[column])
        return ids

    def item(self, item: str | Mapping[str, Any]) -> list[int]:
        """An item's part of a prompt."""
        layout = self.prompt["layout"]
        if isinstance(item, str):
            if item not in self.texts:
                raise ClientError(f"unknown item: got {item!r}; expected one of items.jsonl, or an object with its columns")
            text = self.texts[item]
        elif isinstance(item, Mapping) and item:
            _check_names(item, ("item_id", "title", *layout["text"]), "an item")
            parts = (item.get(column) for column in layout["text"])
            text = "; ".join(part for part in (_as_text(value) for value in parts) if part)
        else:
            raise ClientError(f"an item cannot be read: got {item!r:.80}; expected an id, or an object with its columns")
        return self._tokens("\n" + text)[: layout["max_item_tokens"]] + self._tokens(":")

    def feedback(self, value: Any) -> list[int]:
        """A feedback's part of a prompt."""
        return self._tokens(self._word(value))

    def _word(self, value: Any) -> str:
        """The word for a feedback: the nearest of the values that the adapter was trained with."""
        values = self.prompt["layout"]["values"]
        if value is None:
            return " ?"
        if isinstance(values[0], str):
            return f" {value}" if value in values else " ?"
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise ClientError(f"feedback is not a number: got {value!r:.80}; expected one of {', '.join(map(str, values))}")
        middles = [(a + b) / 2 for a, b in zip(values, values[1:], strict=False)]
        return f" {values[bisect.bisect_left(middles, number)]:g}"

    def _tokens(self, text: str) -> list[int]:
        """Token ids of a text, asked for once."""
        if not text:
            return []
        if text not in self._ids:
            ids = self._tokenize(text)
            if marks := sorted(set(ids) & set(self.prompt.get("control", ()))):
                raise ClientError(
                    f"the server reads a control token in a text: got token {marks[0]} in {text.strip()!r:.80}; expected text "
                    "alone; serve base/ of this folder, whose tokenizer does not"
                )
            self._ids[text] = ids
        return self._ids[text]


class Client:
    """One adapter behind one server.

    Args:
        url: The server, by default http://127.0.0.1:8000; none for llama.cpp, which runs in this process.
        folder: The folder of `prompt.json`, `items.jsonl` and `canaries.json`; by default this file's.
        timeout: Seconds to wait for an answer.
        check: Send the canaries before the first prompt, and refuse a server that does not answer as the adapter does.
        tolerance: Largest difference in the probability of a label word, as of `distance`; by default that of `canaries.json`.
    """

    def __init__(
        self,
        url: str | None = None,
        folder: str | Path | None = None,
        *,
        timeout: float = 600,
        check: bool = True,
        tolerance: float | None = None,
    ) -> None:
        here = Path(folder) if folder is not None else Path(__file__).resolve().parent
        self.prompt = json.loads((here / "prompt.json").read_text(encoding="utf-8"))
        kind = SERVERS[self.prompt.get("server", "vllm")]
        if url is None:
            url = str(here) if kind is LlamaCpp else "http://127.0.0.1:8000"
        self.server = kind(url, self.prompt, timeout=timeout)
        self.texts = read_texts(here)
        self.prompts = Prompts(self.prompt, self.texts, self.server.tokenize)
        self.canaries = read_canaries(here)
        self.tolerance = self.canaries["tolerance"] if tolerance is None else tolerance
        self._unchecked = check and bool(telling(self.canaries, self.canaries["tolerance"]))  # a wider one fails in `check`

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next request opens it again."""
        self.server.close()

    def check(self) -> list[dict[str, Any]]:
        """Send the canaries, and return them with the server's answers (`answer`).

        Raises:
            ClientError: As of `check_server`.
        """
        found = check_server(self.server, self.canaries, self.tolerance, self.prompts)
        self._unchecked = False
        return found

    def score(
        self,
        history: Sequence[Mapping[str, Any]],
        candidates: Sequence[str | Mapping[str, Any]],
        *,
        task: str | None = None,
        user: Mapping[str, Any] | None = None,
    ) -> list[float]:
        """Score candidates after a history.

        Args:
            history: Events in order: `item_id`, or `item` with its columns, and the feedback column.
            candidates: Item ids, or items by their columns.
            task: One of the adapter's tasks; may be left out if it has only one.
            user: The user's columns, for the instruction.

        Returns:
            For each candidate the probability of the last label word (log_loss), the expectation over the words' numbers
            (mse), or that over the classes' numbers (cross_entropy).

        Raises:
            ClientError: The request or the server's answer cannot be used.
        """
        chosen = self._task(task)
        if self._unchecked:
            self.check()
        start = self.prompts.history(history, user or {})
        prompts = [[*start, *self.prompts.item(candidate)] for candidate in candidates]
        scores: list[float] = []
        # The first one goes alone, so that the others find its prefix: prompts that come together do not wait for each other's.
        starts = [0, *range(1, len(prompts), AT_ONCE), len(prompts)]
        for first, end in zip(starts, starts[1:], strict=False):
            for shares in self.server.probabilities(prompts[first:end], chosen["word_ids"]):
                if chosen["loss"] == "log_loss":
                    scores.append(shares[-1] / (shares[0] + shares[-1]))
                else:
                    scores.append(sum(s * n for s, n in zip(shares, chosen["numbers"], strict=True)) / sum(shares))
        return scores

    def answer(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Answer one request; one that cannot be answered gives its error. Raises WrongServer as `check` does."""
        try:
            _check_names(row, _ROW, "a request")
            candidates = row.get("candidates")
            if not isinstance(row.get("history"), list) or not isinstance(candidates, list):
                raise ClientError("a request needs a history and candidates, both lists")
            scores = self.score(row["history"], candidates, task=row.get("task"), user=row.get("user"))
        except WrongServer:
            raise
        except ClientError as error:
            return {"id": row.get("id"), "error": str(error)}
        names = [item if isinstance(item, str) else item.get("item_id") or item.get("title") for item in candidates]
        return {"id": row.get("id"), "results": [{"item_id": n, "score": s} for n, s in zip(names, scores, strict=True)]}

    def _task(self, name: str | None) -> dict[str, Any]:
        tasks: list[dict[str, Any]] = self.prompt["tasks"]
        found = [task for task in tasks if name in (None, task["name"])]
        if len(found) != 1:
            raise ClientError(f"no such task: got {name!r:.80}; expected {' or '.join(task['name'] for task in tasks)}")
        return found[0]


def read_texts(folder: Path) -> dict[str, str]:
    """The items' texts of an exported folder, by their ids."""
    rows = (json.loads(line) for line in (folder / "items.jsonl").read_text(encoding="utf-8").split("\n") if line)
    return {row["item_id"]: row["text"] for row in rows}


def read_canaries(folder: Path) -> dict[str, Any]:
    """The canaries of an exported folder; none where it has no such file."""
    try:
        found: dict[str, Any] = json.loads((folder / CANARIES).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"canaries": [], "tolerance": 0.01, "reason": f"the folder has no {CANARIES}"}
    return found


def telling(found: Mapping[str, Any], tolerance: float) -> list[dict[str, Any]]:
    """The canaries whose answers by base and adapter differ by more than twice the tolerance, so that none is near both."""
    return [each for each in found["canaries"] if distance(each["base"], each["adapter"]) > 2 * tolerance]


def check_server(
    server: Server, found: Mapping[str, Any], tolerance: float, prompts: Prompts | None = None
) -> list[dict[str, Any]]:
    """Send canaries, and return them with the server's answers.

    Args:
        server: The server.
        found: Of `canaries.json`.
        tolerance: Largest difference in the probability of a label word, as of `distance`.
        prompts: Lays the canaries out anew, which shows another tokenizer; without it their stored token ids are sent alone.

    Raises:
        WrongServer: It answers with the base, or with neither of the two, or has another tokenizer.
        ClientError: It does not answer, or no canary tells the adapter from the base.
    """
    name, canaries = server.prompt["model"], telling(found, tolerance)
    if not canaries:
        apart = max((distance(each["base"], each["adapter"]) for each in found["canaries"]), default=0.0)
        reason = found.get("reason") or f"got answers {apart:.2g} apart; expected more than twice the tolerance of {tolerance:g}"
        raise ClientError(f"{name} cannot be told from its base: {reason}")
    answered = []
    for each in canaries:
        if prompts is not None:
            ids = prompts.history(each["history"], {}) + prompts.item(each["candidate"])
            if ids != each["token_ids"]:
                raise WrongServer(f"the server has another tokenizer: got {ids!s:.80}; expected {each['token_ids']!s:.80}")
        (answer,) = server.probabilities([each["token_ids"]], each["word_ids"])
        if not distance(answer, each["adapter"]) <= tolerance:  # true of NaN
            raise _refusal(server, each, answer, tolerance)
        answered.append({**each, "answer": answer})
    return answered


def _refusal(server: Server, canary: Mapping[str, Any], answer: list[float], tolerance: float) -> WrongServer:
    name = server.prompt["model"]
    got = f"got {_words(canary, answer)}; expected {_words(canary, canary['adapter'])}"
    if distance(answer, canary["base"]) <= tolerance:
        todo = f"load the adapter under this name, or ask another server; {server.kind} took the name and left the adapter out"
        return WrongServer(f"{server.url} answers {name} with its base: {got}; {todo}")
    todo = "serve this folder's base and adapter, or raise the tolerance if the server computes in a lower precision"
    base = _words(canary, canary["base"])
    return WrongServer(f"{server.url} answers {name} with neither the adapter nor the base ({base}): {got}; {todo}")


def _words(canary: Mapping[str, Any], shares: Sequence[float]) -> str:
    return ", ".join(f"{word.strip()} {share:.4g}" for word, share in zip(canary["words"], shares, strict=True))


def distance(a: Sequence[float], b: Sequence[float]) -> float:
    """How far two answers are apart: the largest difference of a label word's probability.

    A rare word's probability differs little however wrong it is. So a 50th of the difference of logarithms counts where that
    is more, which is below 1/50. What is below 1e-9 counts as that.
    """
    rows = [(max(x, _LEAST), max(y, _LEAST)) for x, y in zip(a, b, strict=True)]
    return max(max(abs(x - y), _RARE * abs(math.log(x / y))) for x, y in rows)


def _shares(logs: Sequence[float]) -> list[float]:
    """Probabilities among the words alone; -inf is 0."""
    most = max(logs)
    if not math.isfinite(most) or any(math.isnan(log) for log in logs):
        raise ValueError(f"log-probabilities {', '.join(map(str, logs))}")
    weights = [math.exp(log - most) for log in logs]
    return [weight / sum(weights) for weight in weights]


def _check_names(given: Mapping[str, Any], known: Iterable[str], what: str) -> None:
    """Refuse a field that nobody reads."""
    known = list(dict.fromkeys(known))
    if stray := [name for name in given if name not in known]:
        raise ClientError(f"{what} has an unknown field: got {stray[0]!r:.80}; expected {', '.join(known)}")


def _as_text(value: Any) -> str:
    """A column as the catalogue writes it."""
    if value is None:
        return ""
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value).strip()


def _row(line: str, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ClientError(f"request {number} is not JSON: got {error}") from None
    if not isinstance(row, dict):
        raise ClientError(f"request {number} is not an object: got {line.strip()[:80]}")
    return row


def main() -> None:
    """Answer a file of requests, or standard input."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("file", nargs="?", type=argparse.FileType(encoding="utf-8"), default=sys.stdin)
    parser.add_argument("--url", help="the server, by default http://127.0.0.1:8000; none for llama.cpp")
    parser.add_argument("--no-check", action="store_true", help="send no canaries")
    parser.add_argument("--tolerance", type=float, help="largest difference of a canary's probabilities")
    options = parser.parse_args()
    try:
        with Client(options.url, check=not options.no_check, tolerance=options.tolerance) as client:
            for number, line in enumerate(filter(str.strip, options.file), 1):
                try:
                    answer = client.answer(_row(line, number))
                except WrongServer:
                    raise
                except ClientError as error:
                    answer = {"id": None, "error": str(error)}
                print(json.dumps(answer), flush=True)
    except (ClientError, OSError, ValueError) as error:  # ValueError: bytes that are no text, a file that is damaged or missing
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
