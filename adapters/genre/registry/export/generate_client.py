"""Client of a vLLM server that generates this folder's items: a beam search over their codes, level by level.

Needs `client.py`, `prompt.json`, `items.jsonl` and `canaries.json` beside it, Python, and nothing else. One row in, one row out:

    $ python generate.py --url http://127.0.0.1:8000 < requests.jsonl
    {"id": "1", "history": [{"item_id": "50", "rating": 5}], "k": 2}
    {"id": "1", "results": [{"item_id": "181", "score": -2.1}, {"item_id": "172", "score": -2.9}]}

Items, feedback and codes are tokens of the exported base. For each level the server is asked for one token among the level's
codes after every prefix that is kept, and the codes that go on to an item share the probability. So no code is one that no item
has, an item's score is its log-probability among all items, and leaving items out (`candidates`, `exclude`) changes no score.
"""

import argparse
import json
import math
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from genre.registry.export.client import (
    ClientError,
    Prompts,
    Server,
    Vllm,
    WrongServer,
    check_server,
    read_canaries,
    telling,
)

BEAM = 50
_ROW = ("id", "history", "k", "beam", "user", "candidates", "exclude")


class CodePrompts(Prompts):
    """Histories as token ids, items and feedback by tokens of their own where the adapter reads them so."""

    def __init__(self, prompt: Mapping[str, Any], items: Sequence[Mapping[str, Any]], tokenize: Any) -> None:
        super().__init__(prompt, {item["item_id"]: item["text"] for item in items}, tokenize)
        self._numbers = {item["item_id"]: number for number, item in enumerate(items)}

    def item(self, item: str | Mapping[str, Any]) -> list[int]:
        """An item's part of a prompt."""
        layout, known = self.prompt["layout"], str(item if isinstance(item, str) else item.get("item_id"))
        if layout["item"] == "text":
            return super().item(item)
        if known not in self._numbers:
            raise ClientError(f"unknown item: got {item!r:.80}; expected one of items.jsonl, since only those have a vector here")
        token = [self.prompt["first_item"] + self._numbers[known]]
        if layout["item"] == "token":
            return token
        return self._tokens("\n" + self.texts[known])[: layout["max_item_tokens"]] + token

    def feedback(self, value: Any) -> list[int]:
        """A feedback's part of a prompt."""
        word = self._word(value)
        words = [f" {known:g}" if isinstance(known, int | float) else f" {known}" for known in self.prompt["layout"]["values"]]
        return [self.prompt["first_feedback"] + (0 if word == " ?" else 1 + words.index(word))]


class Trie:
    """Items by their codes.

    Args:
        items: Rows of `items.jsonl`.
    """

    def __init__(self, items: Sequence[Mapping[str, Any]]) -> None:
        self._after: dict[tuple[int, ...], set[int]] = {}
        self.item_of: dict[tuple[int, ...], str] = {}
        for item in items:
            codes = tuple(item["codes"])
            self.item_of[codes] = item["item_id"]
            for level, code in enumerate(codes):
                self._after.setdefault(codes[:level], set()).add(code)

    def after(self, prefix: tuple[int, ...]) -> list[int]:
        """The codes by which a prefix goes on to an item."""
        return sorted(self._after[prefix])

    def prefixes(self, items: Collection[str]) -> set[tuple[int, ...]]:
        """All prefixes of some items' codes, and the codes themselves."""
        return {codes[:level] for codes, item in self.item_of.items() if item in items for level in range(len(codes) + 1)}

    def grammar(self, items: Collection[str] | None = None) -> str:
        """An EBNF grammar that generates the codes of some items, of all if None, as their tokens' texts.

        It is what vLLM takes as `structured_outputs: {"grammar": …}`. Send `allowed_token_ids` with it: a grammar is about texts,
        and other tokens spell these texts too.
        """
        kept = None if items is None else self.prefixes(items)
        lines: list[str] = []
        left: list[tuple[int, ...]] = [()]
        while left:
            prefix = left.pop()
            ways = [(*prefix, code) for code in self.after(prefix) if kept is None or (*prefix, code) in kept]
            ends = [way in self.item_of for way in ways]
            parts = [
                json.dumps(code_text(len(prefix), way[-1]), ensure_ascii=False) + ("" if end else f" {_rule(way)}")
                for way, end in zip(ways, ends, strict=True)
            ]
            lines.append(f"{_rule(prefix)} ::= {' | '.join(parts)}")
            left += [way for way, end in zip(ways, ends, strict=True) if not end]
        return "\n".join(lines) + "\n"


def code_text(level: int, code: int) -> str:
    """The text of a code's token: none begins another, nor has the form of a control token."""
    return f"⟨c{level}.{code:05}"


def _rule(prefix: tuple[int, ...]) -> str:
    return "-".join(("root", *map(str, prefix)))


class Generator:
    """One adapter that generates items, behind one server.

    Args:
        server: The server, or its URL.
        folder: The folder of `prompt.json`, `items.jsonl` and `canaries.json`; by default this file's.
        timeout: Seconds to wait for an answer.
        check: Send the canaries before the first prompt, and refuse a server that does not answer as the adapter does.
    """

    def __init__(
        self,
        server: str | Server = "http://127.0.0.1:8000",
        folder: str | Path | None = None,
        *,
        timeout: float = 600,
        check: bool = True,
    ) -> None:
        here = Path(folder) if folder is not None else Path(__file__).resolve().parent
        self.prompt = json.loads((here / "prompt.json").read_text(encoding="utf-8"))
        lines = (here / "items.jsonl").read_text(encoding="utf-8").split("\n")
        self.items = [json.loads(line) for line in lines if line]
        self.server = Vllm(server, self.prompt, timeout=timeout) if isinstance(server, str) else server
        self.prompts = CodePrompts(self.prompt, self.items, self.server.tokenize)
        self.trie = Trie(self.items)
        self.canaries = read_canaries(here)
        self._unchecked = check and bool(telling(self.canaries, self.canaries["tolerance"]))

    def __enter__(self) -> "Generator":
        return self

    def __exit__(self, *_: object) -> None:
        self.server.close()

    def check(self) -> list[dict[str, Any]]:
        """Send the canaries, and return them with the server's answers; raises as `client.check_server` does."""
        found = check_server(self.server, self.canaries, self.canaries["tolerance"])
        self._unchecked = False
        return found

    def recommend(
        self,
        history: Sequence[Mapping[str, Any]],
        k: int = 10,
        *,
        beam: int | None = BEAM,
        user: Mapping[str, Any] | None = None,
        candidates: Collection[str] | None = None,
        exclude: Collection[str] = (),
    ) -> list[tuple[str, float]]:
        """The likeliest items after a history.

        Args:
            history: Events in order: `item_id`, or `item` with its columns, and the feedback column.
            k: How many items at most.
            beam: Prefixes that are kept at each level; None keeps all, so that every item is scored.
            user: The user's columns, for the instruction.
            candidates: Only these items; all if None.
            exclude: Not these items, such as those of the history.

        Returns:
            Items with their log-probabilities, the likeliest first.

        Raises:
            ClientError: The request or the server's answer cannot be used.
        """
        if self._unchecked:
            self.check()
        asked = {item["item_id"] for item in self.items}
        if candidates is not None:
            if strange := sorted(set(candidates) - asked):
                raise ClientError(f"unknown candidate: got {strange[0]!r:.80}; expected one of items.jsonl")
            asked = set(candidates)
        kept = self.trie.prefixes(asked - set(exclude))
        start = self.prompts.history(history, user or {})
        beams: list[tuple[tuple[int, ...], float]] = [((), 0.0)] if kept else []
        for level in range(len(self.prompt["code_sizes"])):
            logs = self._after(start, [prefix for prefix, _ in beams], level)
            beams = [
                ((*prefix, code), score + log)
                for (prefix, score), after in zip(beams, logs, strict=True)
                for code, log in after.items()
                if (*prefix, code) in kept
            ]
            beams = sorted(beams, key=lambda each: (-each[1], each[0]))[:beam]
        return [(self.trie.item_of[codes], score) for codes, score in beams[:k]]

    def _after(self, start: list[int], prefixes: list[tuple[int, ...]], level: int) -> list[dict[int, float]]:
        """For each prefix the log-probability of each code that goes on to an item; the server is asked only for a choice."""
        sizes = self.prompt["code_sizes"]
        offsets = [self.prompt["first_code"] + sum(sizes[:depth]) for depth in range(len(sizes))]
        ways = [self.trie.after(prefix) for prefix in prefixes]
        open_ = [number for number, codes in enumerate(ways) if len(codes) > 1]
        prompts = [start + [offsets[depth] + code for depth, code in enumerate(prefixes[number])] for number in open_]
        found = [dict.fromkeys(codes, 0.0) for codes in ways]
        words = list(range(offsets[level], offsets[level] + sizes[level]))
        answers = self.server.log_probabilities(prompts, words) if prompts else []
        for number, answer in zip(open_, answers, strict=True):
            own = [answer[code] for code in ways[number]]
            most = max(own)
            if not math.isfinite(most):
                raise ClientError(f"the server gives no probability for any item: got {most}; expected finite ones")
            total = most + math.log(sum(math.exp(log - most) for log in own))
            found[number] = {code: log - total for code, log in zip(ways[number], own, strict=True)}
        return found

    def answer(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Answer one request; one that cannot be answered gives its error."""
        try:
            if strange := [name for name in row if name not in _ROW]:
                raise ClientError(f"a request has an unknown field: got {strange[0]!r:.80}; expected {', '.join(_ROW)}")
            if not isinstance(row.get("history"), list):
                raise ClientError("a request needs a history, a list")
            given = {name: value for name, value in row.items() if name not in ("id", "history")}
            found = self.recommend(row["history"], **given)
        except WrongServer:
            raise
        except ClientError as error:
            return {"id": row.get("id"), "error": str(error)}
        return {"id": row.get("id"), "results": [{"item_id": item, "score": score} for item, score in found]}


def main() -> None:
    """Answer the requests on standard input."""
    parser = argparse.ArgumentParser(description="Generate items by a vLLM server that serves this folder.")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    try:
        with Generator(parser.parse_args().url) as generator:
            for line in sys.stdin:
                if line.strip():
                    print(json.dumps(generator.answer(json.loads(line)), ensure_ascii=False), flush=True)
    except ClientError as error:
        sys.exit(f"generate.py: {error}")


if __name__ == "__main__":
    main()
