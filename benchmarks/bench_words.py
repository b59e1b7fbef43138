"""Names of the benchmarks' ratios and counts in words."""

WORDS = {
    "text_vs_prompts": "supervised targets/s, text items against one prompt per target",
    "token_vs_prompts": "supervised targets/s, token items against one prompt per target",
    "time_to_quality": "time to the quality of prompts, prompts against ours (at most)",
    "lanes_16_vs_base": "16 adapters in one batch against the bare base, tokens/s",
    "lanes_16_vs_peft_mixed": "16 adapters in one batch against PEFT's `adapter_names`, layers alone, tokens/s",
    "lanes_16_vs_one_by_one": "16 adapters in one batch against PEFT's `set_adapter`, one by one, tokens/s",
    "branches_vs_prompts": "100 text candidates of one user against a prompt each, candidates/s",
    "branches_vs_kv_cache": "the same against an expanded prefix cache",
    "tasks_4_shared": "4 tasks on one history, shared layers against a pass each",
    "candidates_1000": "1,000 candidates by the head against a row each",
    "lanes_64_of_1000": "1,000 adapters over 64 slots against 64 adapters, requests/s",
    "swap_throughput": "requests/s with a swap every 200 ms against none",
    "memory_64_overhead": "memory of 64 resident adapters beyond base and adapters, share",
    "failed": "requests failed under swaps",
    "mixed": "answers of mixed versions under swaps",
    "swap_ms_p99": "a swap, 99th percentile, ms",
    "int8_linear_memory": "memory of int8 linears against fp32",
    "int8_metric_loss": "AUC lost on an int8 base",
    "adapter_vs_full_throughput": "training tokens/s, adapter against full fine-tune",
    "adapter_vs_full_memory": "peak training memory beyond the base, adapter against full fine-tune",
    "fused_vs_peft_throughput": "training tokens/s, our LoRA layers against PEFT's in the same loop",
    "together_4_vs_one_after_the_other": "training tokens/s, four adapters at once against one after the other",
    "together_4_vs_side_by_side_memory": "peak memory, four adapters at once against four processes",
    "bfloat16_vs_float32_throughput": "training tokens/s, on a base in bfloat16 (`base.precision`) against float32",
    "lora_share_of_base": "LoRA parameters against the base's",
    "http_vs_direct": "targets/s over HTTP against direct calls",
    "p99_vs_median": "99th percentile against median at 70 % load, Poisson arrivals",
    "p99_vs_median_evenly_spaced": "the same, evenly spaced arrivals",
    "memory_growth": "memory growth over the soak, share",
    "restart_to_ready_max": "kill -9 to ready, worst, seconds",
    "text_vs_peft": "training targets/s, text items against PEFT with transformers' Trainer, a prompt per target",
    "token_vs_peft": "training targets/s, token items against the same",
    "mixed_vs_peft": "a batch of 16 adapters against PEFT's `adapter_names`, requests/s",
    "mixed_vs_vllm": "a batch of 16 adapters against vLLM's CPU build, requests/s",
    "mixed_five_vs_adapterhub": "the same on five linears against AdapterHub's `BatchSplit`",
    "mixed_five_vs_peft": "the same on five linears against PEFT",
    "candidates_vs_vllm": "100 candidates of one user against vLLM's CPU build with prefix caching",
    "candidates_vs_peft": "100 candidates of one user against PEFT",
    "two_processes_loss_difference": "largest relative difference of a step's loss, two processes against one",
    "two_processes_auc_difference": "difference of the test AUC, two processes against one",
}


def worded(figure: str) -> str:
    """A figure's name in words."""
    return WORDS.get(figure, figure.replace("_", " "))
