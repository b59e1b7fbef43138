#!/usr/bin/env bash
# xgrammar 0.2.9 (the grammars of vLLM's and SGLang's structured outputs), 2026-11-30
# Guess: with one token added to the vocabulary for each code of an item, as generative recommenders do (<a_0><b_2>), a grammar of the
# items allows after each prefix the codes that go on, and nothing else.
# Seen: a grammar is about text, so it allows as well every ordinary token that begins the same text: here "<", and with a tokenizer
# that knows more, "<a" or "<a_". Adding the codes as special tokens changes nothing. A model that takes one spells the code letter by
# letter.
# Matters: such a path is legal text and no code. A beam search ranks it beside items, its tokens were never trained to mean them, and
# probabilities of the codes do not sum to one. Send the code tokens as allowed_token_ids beside the grammar.
#
# Output:
#   xgrammar 0.2.9
#   added tokens: first ['<', '<a_0>', '<a_2>'] after <a_0> ['<', '<b_0>', '<b_2>']
#   special tokens: first ['<', '<a_0>', '<a_2>'] after <a_0> ['<', '<b_0>', '<b_2>']
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.24.0 xgrammar==0.2.9
"$work/venv/bin/python" - <<'PY'
from importlib.metadata import version

import xgrammar
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

ITEMS = ["<a_0><b_0>", "<a_0><b_2>", "<a_2><b_1>"]
CODES = [f"<{level}_{number}>" for level in "ab" for number in range(3)]


def tokenizer(special):
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words.train_from_iterator(["a small red chair"], trainers.BpeTrainer(initial_alphabet=alphabet, special_tokens=["</s>"]))
    made = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>")
    made.add_tokens(CODES, special_tokens=special)
    return made


def allowed(matcher, words):
    bits = xgrammar.allocate_token_bitmask(1, len(words))
    matcher.fill_next_token_bitmask(bits)
    return [words.convert_ids_to_tokens(token) for token in range(len(words)) if int(bits[0, token // 32]) >> token % 32 & 1]


print("xgrammar", version("xgrammar"))
for kind in ("added", "special"):
    words = tokenizer(kind == "special")
    info = xgrammar.TokenizerInfo.from_huggingface(words, vocab_size=len(words))
    grammar = "root ::= " + " | ".join(f'"{item}"' for item in ITEMS)
    matcher = xgrammar.GrammarMatcher(xgrammar.GrammarCompiler(info).compile_grammar(grammar))
    first = allowed(matcher, words)
    assert matcher.accept_token(words.convert_tokens_to_ids("<a_0>"))
    second = allowed(matcher, words)
    print(f"{kind} tokens: first {first} after <a_0> {second}")
    assert first == ["<", "<a_0>", "<a_2>"] and second == ["<", "<b_0>", "<b_2>"]
PY
