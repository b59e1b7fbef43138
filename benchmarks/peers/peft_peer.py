"""PEFT: transformers' Trainer, `adapter_names`, and a prefix KV cache expanded over the candidates.

training    Trainer, one prompt per target, batches of about equal length (`train_sampling_strategy="group_by_length"`), logits of
            the answer's place only (`logits_to_keep`), loss on the answer's token.
mixed       One batch, a row per adapter, `adapter_names`.
candidates  The history once, its cache repeated over the candidates, in right-padded batches.
"""

import logging
import time
from typing import Any

import torch
from rounds import Part, serve
from transformers import AutoModelForCausalLM, DynamicCache

STEPS = 3
AT_ONCE = 100


def load(folder: str) -> Any:
    """The base in fp32."""
    logging.disable(logging.WARNING)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def odds(logits: torch.Tensor, words: list[int]) -> list[float]:
    """Log-odds of the last word against the first, of (n, V) logits."""
    return (logits[:, words[-1]] - logits[:, words[0]]).tolist()


def adapted(job: dict[str, Any], kind: str) -> tuple[Any, list[str]]:
    """The base with the adapters of a kind, and their names."""
    from peft import PeftModel

    names = [f"a{number}" for number in range(len(job["adapters"][kind]))]
    model = PeftModel.from_pretrained(load(job["base"]), job["adapters"][kind][0]["folder"], adapter_name=names[0])
    for name, adapter in zip(names[1:], job["adapters"][kind][1:], strict=True):
        model.load_adapter(adapter["folder"], adapter_name=name)
    return model.eval(), names


def mixed(kind: str) -> Any:
    """A batch in which every row has an adapter of its own."""

    def open_part(job: dict[str, Any]) -> Part:
        model, names = adapted(job, kind)
        ids = torch.tensor([row["ids"] for row in job["mixed"]])

        @torch.inference_mode()
        def answers() -> list[float]:
            found = model(input_ids=ids, adapter_names=names, use_cache=False, logits_to_keep=1)
            return odds(found.logits[:, -1], job["words"])

        return Part(answers, lambda: float(len(answers())))

    return open_part


def candidates(job: dict[str, Any]) -> Part:
    """Candidates on one history by one adapter."""
    model, _ = adapted(job, "seven")
    history = torch.tensor([job["candidates"]["history_ids"]])
    rows = sorted(enumerate(job["candidates"]["candidate_ids"]), key=lambda pair: len(pair[1]))

    @torch.inference_mode()
    def answers() -> list[float]:
        found: dict[int, float] = {}
        for start in range(0, len(rows), AT_ONCE):
            some = rows[start : start + AT_ONCE]
            cache = DynamicCache(config=model.config)
            model(input_ids=history, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache.batch_repeat_interleave(len(some))
            longest = max(len(ids) for _, ids in some)
            padded = torch.tensor([ids + [0] * (longest - len(ids)) for _, ids in some])
            hidden = model.base_model.model.model(input_ids=padded, past_key_values=cache, use_cache=True).last_hidden_state
            last = hidden[torch.arange(len(some)), torch.tensor([len(ids) - 1 for _, ids in some])]
            found |= zip([number for number, _ in some], odds(model.lm_head(last), job["words"]), strict=True)
        return [found[number] for number in range(len(rows))]

    return Part(answers, lambda: float(len(answers())))


def training(job: dict[str, Any]) -> Part:
    """Trainer, a few steps a round."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    own = job["training"]
    config = LoraConfig(r=job["rank"], lora_alpha=job["alpha"], target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(load(job["training_base"]), config)
    prompts = own["prompts"]
    loop = Steps(model, prompts, own)

    @torch.inference_mode()
    def answers() -> list[float]:
        model.eval()
        found = model(**collate(prompts[:16]), use_cache=False).logits[:, -2]
        return odds(found, own["words"])

    return Part(answers, loop.go)


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Prompts with their answers, padded on the left, so that the answer is at the last but one position of every row."""
    longest = 1 + max(len(row["ids"]) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    labels = torch.full((len(rows), 2), -100)
    for place, row in enumerate(rows):
        whole = [*row["ids"], row["answer"]]
        ids[place, -len(whole) :], mask[place, -len(whole) :] = torch.tensor(whole), 1
        labels[place, -1] = row["answer"]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "logits_to_keep": 2}


class Steps:
    """A Trainer in a thread of its own that takes a number of steps on demand."""

    def __init__(self, model: Any, prompts: list[dict[str, Any]], own: dict[str, Any]) -> None:
        import queue
        import threading

        self.size = max(1, round(own["tokens_per_step"] * len(prompts) / sum(len(row["ids"]) + 1 for row in prompts)))
        self.asked: Any = queue.Queue()
        self.done: Any = queue.Queue()
        self.trainer = make_trainer(model, prompts, self.size, own, self)
        self.left = 0
        self.begun = 0.0
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            self.trainer.train()
        except Exception as error:
            self.done.put(error)

    def begin(self) -> None:
        """Wait for a round to begin, if none is under way."""
        if self.left == 0:
            self.left = self.asked.get()
            self.begun = time.perf_counter()

    def end(self) -> None:
        """Count a step."""
        self.left -= 1
        if self.left == 0:
            self.done.put(time.perf_counter() - self.begun)

    def go(self) -> tuple[float, float]:
        """Targets and seconds of one round; preparing its batch is not counted."""
        self.asked.put(STEPS)
        seconds = self.done.get()
        if isinstance(seconds, Exception):
            raise seconds
        return float(STEPS * self.size), seconds


def make_trainer(model: Any, prompts: list[dict[str, Any]], size: int, own: dict[str, Any], steps: Steps) -> Any:
    """The Trainer, at the settings of the module's head."""
    import tempfile

    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Rounds(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            steps.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            steps.end()

    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=size,
        max_steps=100_000,
        learning_rate=own["learning_rate"],
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
        train_sampling_strategy="group_by_length",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    rows = [{"input_ids": row["ids"], **row} for row in prompts]  # lengths are read off input_ids
    return Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collate, callbacks=[Rounds()])


if __name__ == "__main__":
    serve(
        {"training": training, "mixed_seven": mixed("seven"), "mixed_five": mixed("five"), "candidates": candidates},
        ("torch", "transformers", "peft", "accelerate"),
    )
