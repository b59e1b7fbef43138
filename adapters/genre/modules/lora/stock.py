"""Answers of stock transformers and PEFT: what a base, and an adapter on it, say in float32 on the CPU.

Owns: loading them, one prompt at a time. Ignores: our own layers, the engine. A server elsewhere has to answer
so:

    next(label_probabilities(base, adapter, 4, [([1, 523, 27], [1770, 3293])]))    # ([.61, .39], [.08, .92])
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from genre.errors import BaseModelError, first_line
from genre.modules.base.loading import cut_layers
from genre.modules.base.quiet import quiet


def label_probabilities(
    base: Path, adapter: Path, depth: int | None, prompts: Iterable[tuple[Sequence[int], Sequence[int]]]
) -> Iterator[tuple[list[float], list[float]]]:
    """Yield for each prompt the probabilities of its label words, by the base alone and with the adapter.

    Args:
        base: A transformers folder.
        adapter: A PEFT folder.
        depth: How many of the base's first layers the adapter is for; None for all.
        prompts: Token ids, and the ids of the label words among which the probabilities are.

    Raises:
        BaseModelError: The two cannot be loaded.
    """
    ask = label_logits(base, adapter, depth)
    for ids, words in prompts:
        alone, adapted = (logits.softmax(-1).tolist() for logits in ask(ids, words))
        yield alone, adapted


def label_logits(
    base: Path, adapter: Path, depth: int | None
) -> Callable[[Sequence[int], Sequence[int]], tuple[torch.Tensor, torch.Tensor]]:
    """Load a base and an adapter; what is returned gives a prompt's logits of some words, by the base alone and with the adapter.

    Arguments and errors are those of `label_probabilities`.
    """
    model = _load(base, adapter, depth)

    @torch.no_grad()
    def ask(ids: Sequence[int], words: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        tokens, kept = torch.tensor([list(ids)]), torch.tensor(list(words))
        with model.disable_adapter():
            alone = model(tokens).logits[0, -1, kept]
        return alone, model(tokens).logits[0, -1, kept]

    return ask


def _load(base: Path, adapter: Path, depth: int | None) -> Any:
    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForCausalLM

    with quiet():
        try:
            config = AutoConfig.from_pretrained(base)
            cut_layers(str(base), config, depth)
            model = AutoModelForCausalLM.from_pretrained(base, config=config, dtype=torch.float32)
            return PeftModel.from_pretrained(model, adapter).eval()
        except (OSError, ValueError, ImportError, RuntimeError) as error:
            raise BaseModelError("the base and its adapter cannot be loaded by PEFT", got=first_line(error)) from None
