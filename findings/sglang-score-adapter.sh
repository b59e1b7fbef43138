#!/usr/bin/env bash
# sglang 0.5.23, 2026-11-30
# Guess: `model: base:adapter` chooses an adapter at every endpoint that takes a model, or is refused.
# Seen: /v1/completions resolves the name, and takes `lora_path` too. /v1/score has no field for an adapter and never looks at the name, nor
# does the scorer behind it, so the base answers; `lora_path` is dropped without an error. The reply has the adapter's name as its model.
# The server needs a GPU to start. Here the wheel's own request models and handler run, taken from its source, and a scorer in the
# engine's place writes down all that reaches it.
# Matters: /v1/score is the endpoint made for rankers, and the scores look sound. Ask /v1/completions with logprobs and the adapter's name.
#
# Output:
#   sglang 0.5.23
#     /v1/completions       field model, field lora_path, adapter looked up: (True, True, True)
#     /v1/chat/completions  field model, field lora_path, adapter looked up: (True, True, True)
#     /v1/embeddings        field model, field lora_path, adapter looked up: (True, True, True)
#     /v1/score             field model, field lora_path, adapter looked up: (True, False, False)
#   name tiny:films, looked up as /v1/completions does: films
#   /v1/score hands to the scorer: {'query': 'liked:', 'items': [' Alien'], 'label_token_ids': [1], 'temperature': 1.0}
#   /v1/score answers: {"scores":[[0.5]],"pooled_hidden_states":null,"token_logprobs":null,"model":"tiny:films","usage":{"prompt_tokens":2,"total_tokens":2},"object":"scoring"}
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet fastapi==0.165.0
cd "$work"
venv/bin/pip download --quiet --no-deps --only-binary :all: sglang==0.5.23
venv/bin/python - sglang-0.5.23-*.whl <<'PY'
import ast
import asyncio
import sys
import types
import typing
import zipfile

import pydantic
from fastapi.responses import JSONResponse

wheel = zipfile.ZipFile(sys.argv[1])
openai = "sglang/srt/entrypoints/openai/"


def definition(path, name):
    (node,) = (node for node in ast.walk(ast.parse(wheel.read(path))) if getattr(node, "name", None) == name)
    return node


def run(path, name, **names):
    """The class or function of that name, run without the rest of its file, which imports CUDA kernels."""
    annotations = ast.ImportFrom("__future__", [ast.alias("annotations")], 0)
    module = ast.fix_missing_locations(ast.Module([annotations, definition(path, name)], []))
    space = vars(typing) | vars(pydantic) | names
    exec(compile(module, path, "exec"), space)
    taken = space[name]
    if isinstance(taken, type):
        taken.model_rebuild(_types_namespace=space)
    return taken


print("sglang", wheel.filename.split("-")[1])
chosen = {}
for endpoint, request, handler in (
    ("/v1/completions", "CompletionRequest", "serving_completions.py"),
    ("/v1/chat/completions", "ChatCompletionRequest", "serving_chat.py"),
    ("/v1/embeddings", "EmbeddingRequest", "serving_embedding.py"),
    ("/v1/score", "ScoringRequest", "serving_score.py"),
):
    fields = {node.target.id for node in definition(openai + "protocol.py", request).body if isinstance(node, ast.AnnAssign)}
    called = {node.attr for node in ast.walk(ast.parse(wheel.read(openai + handler))) if isinstance(node, ast.Attribute)}
    chosen[endpoint] = "model" in fields, "lora_path" in fields, "_resolve_lora_path" in called
    print(f"  {endpoint:21} field model, field lora_path, adapter looked up: {chosen[endpoint]}")
assert chosen.pop("/v1/score") == (True, False, False) and set(chosen.values()) == {(True, True, True)}
assert b"lora" not in wheel.read("sglang/srt/managers/tokenizer_manager_score_mixin.py").lower()

reached = {}


async def score_request(**arguments):
    reached.update(arguments)
    return types.SimpleNamespace(scores=[[0.5]], pooled_hidden_states=None, token_logprobs=None, prompt_tokens=2)


base = "tiny"
server = types.SimpleNamespace(tokenizer_manager=types.SimpleNamespace(score_request=score_request, served_model_name=base))
server._parse_model_parameter = types.MethodType(run(openai + "serving_base.py", "_parse_model_parameter"), server)
resolve = run(openai + "serving_base.py", "_resolve_lora_path")
print("name tiny:films, looked up as /v1/completions does:", resolve(server, "tiny:films", None))

ScoringRequest = run(openai + "protocol.py", "ScoringRequest", DEFAULT_MODEL_NAME="default")
usage = pydantic.create_model("UsageInfo", prompt_tokens=int, total_tokens=int)
ScoringResponse = run(openai + "protocol.py", "ScoringResponse", UsageInfo=usage)
names = {"ScoringResponse": ScoringResponse, "UsageInfo": usage, "ORJSONResponse": JSONResponse}
handle = run(openai + "serving_score.py", "_handle_non_streaming_request", **names)
body = {"model": "tiny:films", "lora_path": "films", "query": "liked:", "items": [" Alien"], "label_token_ids": [1]}
request = ScoringRequest.model_validate(body)
answer = asyncio.run(handle(server, request, request, None)).body.decode()
print("/v1/score hands to the scorer:", {name: value for name, value in reached.items() if value})
print("/v1/score answers:", answer)
assert "films" not in str(reached) and '"model":"tiny:films"' in answer
PY
