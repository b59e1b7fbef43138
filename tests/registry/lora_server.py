"""A small server that speaks as much of vLLM's and of SGLang's API as the client asks for.

Stock PEFT on the exported base answers. It tokenizes with the exported tokenizer and gives log-probabilities among the allowed
tokens, or (`raw`) among all. Told to (`base_only`), it takes the adapter's name and answers with the base, as servers have been
found to.
"""

import contextlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch


class Served:
    """The exported base with the exported adapter."""

    def __init__(self, folder: Path, *, raw: bool, base_only: bool) -> None:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from genre.modules.base.quiet import quiet

        with quiet():
            self.tokenizer = AutoTokenizer.from_pretrained(folder / "base")
            base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
            self.model = PeftModel.from_pretrained(base, folder / "adapter").eval()
        self.raw = raw
        self.name = json.loads((folder / "prompt.json").read_text())["model"]
        self.base_only = base_only
        self.prompts: list[list[int]] = []

    def tokenize(self, body: dict[str, Any]) -> dict[str, Any]:
        return {"tokens": self.tokenizer(body["prompt"], add_special_tokens=body["add_special_tokens"])["input_ids"]}

    @torch.no_grad()
    def logits(self, ids: list[int], *, adapted: bool = True) -> torch.Tensor:
        self.prompts.append(ids)
        with contextlib.nullcontext() if adapted and not self.base_only else self.model.disable_adapter():
            return self.model(torch.tensor([ids])).logits[0, -1]

    def generate(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        """SGLang's own route, as `GenerateReqInput` and `TokenizerManager` of 0.5.23 have it: unknown fields are not read."""
        words, sampling = body["token_ids_logprob"], body["sampling_params"]
        assert body["return_logprob"] and sampling == {"max_new_tokens": 0, "temperature": 1.0}
        lora = body.get("lora_path")
        if lora not in (None, self.name):
            raise LookupError(f"Got LoRA adapter that has never been loaded: {lora}\nAll loaded adapters: {[self.name]}.")
        answers = []
        for ids in body["input_ids"]:
            logs = torch.log_softmax(self.logits(ids, adapted=lora is not None), -1)
            rows = [[float(logs[word]), word, None] for word in words]
            answers.append({"text": "", "output_ids": [], "meta_info": {"output_token_ids_logprobs": [rows]}})
        return answers

    def score(self, body: dict[str, Any]) -> dict[str, Any]:
        """SGLang's `/v1/score`, as `ScoringRequest` and `score_request` of 0.5.23 have it: `model` is repeated, and not read."""
        scores = []
        for item in body["items"]:
            logs = torch.log_softmax(self.logits(body["query"] + item, adapted=False), -1)[body["label_token_ids"]]
            scores.append((logs.softmax(-1) if body["apply_softmax"] else logs.exp()).tolist())
        return {"scores": scores, "model": body["model"], "object": "scoring"}

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        assert (body["max_tokens"], body["temperature"], body["return_tokens_as_token_ids"]) == (1, 1.0, True)
        choices = []
        for place, ids in enumerate(body["prompt"]):
            logits = self.logits(ids)
            if not self.raw:
                kept = torch.full_like(logits, float("-inf"))
                kept[body["allowed_token_ids"]] = logits[body["allowed_token_ids"]]
                logits = kept
            best = torch.log_softmax(logits, -1).topk(body["logprobs"])
            top = {f"token_id:{i}": v for i, v in zip(best.indices.tolist(), best.values.tolist(), strict=True)}
            choices.append({"index": place, "logprobs": {"top_logprobs": [top]}})
        return {"choices": choices[::-1]}  # in any order


@contextmanager
def lora_server(folder: Path, *, raw: bool = False, base_only: bool = False) -> Iterator[tuple[str, Served]]:
    """The server's URL on loopback, and what it serves."""
    served = Served(folder, raw=raw, base_only=base_only)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answers = {"/tokenize": served.tokenize, "/v1/completions": served.complete}
            answers |= {"/generate": served.generate, "/v1/score": served.score}
            known = self.path in ("/generate", "/v1/score") or body.get("model") == served.name
            status = 200 if known else 404
            try:
                answer = answers[self.path](body) if known else {"error": "no such model"}
            except LookupError as error:
                status, answer = 400, {"error": {"message": str(error)}}
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
