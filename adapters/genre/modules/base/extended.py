"""A base with more rows in its vocabulary: a transformers folder whose further tokens have vectors of ours.

Owns: the rows of embedding and head, the tokens of the tokenizer. Ignores: what the tokens are for.

    extend_base(Path("smollm2-135m"), 8, Path("out/base"), ["⟨c0.00000", "⟨c0.00001"], inputs, outputs)   # 49152, the first

Servers of language models share one vocabulary among all adapters, so what adapters share beside it becomes rows of it.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genre.errors import BaseModelError, first_line
from genre.modules.base.loading import cut_layers
from genre.modules.base.quiet import quiet


def extend_base(base: Path, depth: int | None, out: Path, named: list[str], inputs: Tensor, outputs: Tensor) -> int:
    """Write a base with further tokens as a folder.

    Embedding and head are written in float32, and apart even where the base ties them; all else as it is.

    Args:
        base: A transformers folder.
        depth: How many of its first layers are kept; None for all.
        out: A new folder.
        named: Texts of the first further tokens, which the tokenizer learns; the others are numbers alone.
        inputs: (n, D) vectors of the further tokens, as they go into the first layer.
        outputs: (m, D) rows of the head for the first m of them, m at most n; the head's other new rows are zero.

    Returns:
        The number of the first further token.

    Raises:
        BaseModelError: transformers cannot load the folder.
    """
    from tokenizers import AddedToken
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    with quiet(), torch.no_grad():
        try:
            config = AutoConfig.from_pretrained(base)
            cut_layers(str(base), config, depth)
            tokenizer = AutoTokenizer.from_pretrained(base)
            model: Any = AutoModelForCausalLM.from_pretrained(base, config=config, dtype="auto")
        except (OSError, ValueError, ImportError, RuntimeError) as error:
            raise BaseModelError("the base cannot be loaded by transformers", got=first_line(error)) from None
        first, known = len(tokenizer), model.get_input_embeddings().weight.shape[0]
        tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in named])
        if len(tokenizer) != first + len(named):
            got = f"{len(tokenizer) - first} of {len(named)}"
            raise BaseModelError("the base's tokenizer knows a further token already", got=got, expected="new texts alone")
        model.config.tie_word_embeddings = False
        size = max(known, first + len(inputs))
        scale = float(getattr(model.get_input_embeddings(), "embed_scale", 1.0))
        model.resize_token_embeddings(size, mean_resizing=False)
        embedding, head = model.get_input_embeddings().float(), model.get_output_embeddings()
        apart = nn.Linear(head.weight.shape[1], size, bias=head.bias is not None)
        apart.weight.copy_(head.weight)
        if head.bias is not None:
            apart.bias.copy_(head.bias)
            apart.bias[first:] = 0
        embedding.weight[first : first + len(inputs)] = inputs.float().cpu() / scale
        apart.weight[first:] = 0
        apart.weight[first : first + len(outputs)] = outputs.float().cpu()
        model.set_output_embeddings(apart)
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
    return first
