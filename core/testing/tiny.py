"""A random Llama of about 100 thousand parameters with a real tokenizer and chat template, and rows to train it on."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_NUMBERS = "one two three four five six seven eight nine ten".split()
_WORDS = [*_NUMBERS, "red", "blue", "green", "name", "the", "color", "number", "after", "is"]


def tiny_tokenizer() -> Any:
    """A byte-level BPE tokenizer of 320 tokens with ChatML's special tokens and template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(_WORDS)] * 4, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def tiny_model(folder: Path, seed: int = 0, layers: int = 2, hidden: int = 64) -> Path:
    """Write the model (fp32, tied embeddings, grouped-query attention) and its tokenizer into `folder`.

    Returns the folder. The same seed gives the same weights.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.1,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_pairs(path: Path, count: int = 40, seed: int = 0) -> Path:
    """Write preference rows with answers as JSON Lines: the number after a number, chosen right and rejected wrong.

    Such rows serve every schema: demonstrations, pairs, prompts with answers.
    """
    rng = random.Random(seed)
    numbers = _NUMBERS
    with path.open("w", encoding="utf-8") as file:
        for index in range(count):
            place = index % 9
            right, wrong = numbers[place + 1], rng.choice([word for word in numbers if word != numbers[place + 1]])
            row = {
                "prompt": f"Name the number after {numbers[place]} {rng.choice(_WORDS)} {index}",
                "chosen": right,
                "rejected": wrong,
                "answer": right,
            }
            file.write(json.dumps(row) + "\n")
    return path
