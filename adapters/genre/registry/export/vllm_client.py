"""Client of a vLLM server that serves this folder's adapter: scores from the probabilities of its label words.

Needs `prompt.json` and `items.jsonl` beside it, Python, and nothing else. One row in, one row out:

    $ python client.py --url http://127.0.0.1:8000 < requests.jsonl
    {"id": "1", "history": [{"item_id": "50", "rating": 5}], "candidates": ["181", {"title": "A new film"}]}
    {"id": "1", "results": [{"item_id": "181", "score": 0.83}, {"item_id": "A new film", "score": 0.41}]}

A prompt is token ids, put together part by part as in training: begin token, instruction, then for each event its item's
text, ":" and a word for the feedback, if the adapter reads one; last the candidate's text and ":". The server is asked for one
token among the label words only, and their log-probabilities give the score.
"""

import argparse
import bisect
import http.client
import json
import math
import string
import sys
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

_ROW = ("id", "adapter", "task", "history", "candidates", "user")
_EVENT = ("item_id", "item", "impression_id", "timestamp", "rating", "click", "behaviour")
AT_ONCE = 256
"""Prompts of one call to the server."""


class ClientError(Exception):
    """A request that cannot be sent, or a server that does not answer as it should."""


class Client:
    """One adapter behind one server.

    Args:
        url: The server.
        folder: The folder of `prompt.json` and `items.jsonl`; by default this file's.
        timeout: Seconds to wait for an answer.
    """

    def __init__(self, url: str = "http://127.0.0.1:8000", folder: str | Path | None = None, *, timeout: float = 600) -> None:
        here = Path(folder) if folder is not None else Path(__file__).resolve().parent
        self.prompt = json.loads((here / "prompt.json").read_text(encoding="utf-8"))
        rows = (json.loads(line) for line in (here / "items.jsonl").read_text(encoding="utf-8").split("\n") if line)
        self.texts: dict[str, str] = {row["item_id"]: row["text"] for row in rows}
        parts = urllib.parse.urlsplit(url)
        try:
            kind = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}[parts.scheme]
            if not parts.hostname:
                raise ValueError
            self._connection = kind(parts.hostname, parts.port, timeout=timeout)
        except (KeyError, ValueError):
            raise ClientError(f"not the URL of a server: got {url!r}; expected such as http://127.0.0.1:8000") from None
        self._path = parts.path.rstrip("/")
        self._ids: dict[str, list[int]] = {}

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next request opens it again."""
        self._connection.close()

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
        start = self._history(history, user or {})
        prompts = [[*start, *self._item(candidate)] for candidate in candidates]
        scores: list[float] = []
        # The first one goes alone, so that the others find its prefix: prompts that come together do not wait for each other's.
        starts = [0, *range(1, len(prompts), AT_ONCE), len(prompts)]
        for first, end in zip(starts, starts[1:], strict=False):
            for shares in self._probabilities(prompts[first:end], chosen["word_ids"]):
                if chosen["loss"] == "log_loss":
                    scores.append(shares[-1] / (shares[0] + shares[-1]))
                else:
                    scores.append(sum(s * n for s, n in zip(shares, chosen["numbers"], strict=True)) / sum(shares))
        return scores

    def answer(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Answer one request; one that cannot be answered gives its error."""
        try:
            _check_names(row, _ROW, "a request")
            candidates = row.get("candidates")
            if not isinstance(row.get("history"), list) or not isinstance(candidates, list):
                raise ClientError("a request needs a history and candidates, both lists")
            scores = self.score(row["history"], candidates, task=row.get("task"), user=row.get("user"))
        except ClientError as error:
            return {"id": row.get("id"), "error": str(error)}
        names = [item if isinstance(item, str) else item.get("item_id") or item.get("title") for item in candidates]
        return {"id": row.get("id"), "results": [{"item_id": n, "score": s} for n, s in zip(names, scores, strict=True)]}

    def _task(self, name: str | None) -> dict[str, Any]:
        tasks = {task["name"]: task for task in self.prompt["tasks"]}
        if name is None and len(tasks) == 1:
            return next(iter(tasks.values()))
        if name not in tasks:
            raise ClientError(f"no such task: got {name!r}; expected {' or '.join(tasks)}")
        return tasks[name]

    def _history(self, history: Sequence[Mapping[str, Any]], user: Mapping[str, Any]) -> list[int]:
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
        for event in history[max(len(history) - layout["max_events"] + 1, 0) :]:
            if event.get("impression_id") is not None:
                raise ClientError(
                    "events of one impression do not see each other, which one prompt cannot express: got impression_id; "
                    "expected events without it; ask genre's own engine"
                )
            _check_names(event, _EVENT if column is None else (*_EVENT, column), "an event")
            if "item_id" not in event and "item" not in event:
                raise ClientError(f"an event names no item: got {dict(event)!r:.80}; expected item_id, or item with its columns")
            ids += self._item(event["item_id"] if "item_id" in event else event["item"])
            if column is None:
                continue
            if column not in event:
                raise ClientError(
                    f"an event has no {column}: got {dict(event)!r:.80}; expected {column}, null where it is not known"
                )
            ids += self._tokens(self._word(event[column]))
        return ids

    def _item(self, item: str | Mapping[str, Any]) -> list[int]:
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
        """Token ids of a text from the server's own tokenizer, asked for once."""
        if not text:
            return []
        if text not in self._ids:
            body = {"model": self.prompt["model"], "prompt": text, "add_special_tokens": False}
            ids = self._post("/tokenize", body)["tokens"]
            if marks := sorted(set(ids) & set(self.prompt.get("control", ()))):
                raise ClientError(
                    f"the server reads a control token in a text: got token {marks[0]} in {text.strip()!r:.80}; expected text "
                    "alone; serve base/ of this folder, whose tokenizer does not"
                )
            self._ids[text] = ids
        return self._ids[text]

    def _probabilities(self, prompts: list[list[int]], words: list[int]) -> Iterable[list[float]]:
        """For each prompt the probability of each label word among all of them."""
        if not prompts:
            return
        sampling = {"max_tokens": 1, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
        wanted = {"logprobs": len(words), "allowed_token_ids": words, "return_tokens_as_token_ids": True}
        answer = self._post("/v1/completions", {"model": self.prompt["model"], "prompt": prompts, **sampling, **wanted})
        for choice in sorted(answer["choices"], key=lambda choice: choice["index"]):
            top = choice["logprobs"]["top_logprobs"][0]
            if missing := [word for word in words if f"token_id:{word}" not in top]:
                raise ClientError(
                    f"the server gives no probability for a label word: got {', '.join(top)}; expected token_id:{missing[0]} "
                    "too; start it with --logprobs-mode processed_logprobs"
                )
            yield [math.exp(top[f"token_id:{word}"]) for word in words]

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
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
            raise ClientError(f"the server's answer to {path} is not JSON: got {text[:80]!r}; is this a vLLM server?") from None


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
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    options = parser.parse_args()
    try:
        with Client(options.url) as client:
            for number, line in enumerate(filter(str.strip, options.file), 1):
                try:
                    answer = client.answer(_row(line, number))
                except ClientError as error:
                    answer = {"id": None, "error": str(error)}
                print(json.dumps(answer), flush=True)
    except (ClientError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
