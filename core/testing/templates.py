"""The chat templates that trl ships, each with a tiny tokenizer, and the page of docs that says what they train.

`python -m core.testing.templates > docs/templates.md` writes that page.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from core.data.records import Message
from core.errors import PreftuneError
from core.testing.tiny import tiny_tokenizer
from core.tokens.codec import ChatCodec

ENDS = {
    "cohere": "<|END_OF_TURN_TOKEN|>",
    "deepseek": "<｜end▁of▁sentence｜>",
    "diffusion_gemma": "<turn|>",
    "gemma": "<end_of_turn>",
    "gemma4": "<turn|>",
    "glm4moe": "<|user|>",
    "gptoss": "<|return|>",
    "idefics3": "<end_of_utterance>",
    "llama3": "<|eot_id|>",
    "llava": "</s>",
    "muse": "<|eot|>",
    "phi3": "<|end|>",
    "smolvlm": "<end_of_utterance>",
}
"""End-of-turn token of the templates whose names begin so, the longest beginning first; of the others <|im_end|>."""

ASKED, THOUGHT, ANSWER = "Add 1 and 1.", "One more than one is two.", "The sum is 2."
WRITTEN = {
    "none": Message("assistant", ANSWER),
    "field": Message("assistant", ANSWER, reasoning=THOUGHT),
    "inline": Message("assistant", f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}"),
    "inline, one line": Message("assistant", f"<think>{THOUGHT}</think>{ANSWER}"),
    "inline, not opened": Message("assistant", f"{THOUGHT}\n</think>\n\n{ANSWER}"),
    "both": Message("assistant", f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}", reasoning=THOUGHT),
}
"""Ways in which data write a turn, with a thought before its answer or without."""


def shipped() -> dict[str, Path]:
    """The template files by name, without the training variants; empty where trl is not installed."""
    spec = find_spec("trl")  # found, not imported: trl takes seconds
    if spec is None or spec.origin is None:
        return {}
    files = sorted((Path(spec.origin).parent / "chat_templates").glob("*.jinja"))
    return {file.stem: file for file in files if not file.stem.endswith("_training")}


def codec_of(name: str) -> ChatCodec:
    """A codec with one of the templates. Raises: NotPrefix, DataError and ModelError as ChatLayout does."""
    end = next((ENDS[start] for start in sorted(ENDS, key=len, reverse=True) if name.startswith(start)), "<|im_end|>")
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>", "additional_special_tokens": [end]})
    tokenizer.eos_token = end
    tokenizer.chat_template = shipped()[name].read_text(encoding="utf-8")
    return ChatCodec(tokenizer, 4096)


def trained_text(codec: ChatCodec, turn: Message) -> str:
    """What is trained of a final turn. Raises: DataError for one that the template cannot say."""
    (layout,) = codec.lay_out([Message("user", ASKED), turn], (), [1])
    ids, owners = codec.encode([layout])[0]
    return codec.tokenizer.decode([token for token, owner in zip(ids, owners, strict=True) if owner == 1])


def trained_row(name: str) -> tuple[str, str, str]:
    """Of a template: what it opens the turn with, what is trained without a thought, and with one."""
    try:
        codec = codec_of(name)
        opened = codec.layout.prompt([Message("user", ASKED)]).rpartition(ASKED)[2]
        texts = []
        for way in ("none", "field"):
            try:
                texts.append(_cell(trained_text(codec, WRITTEN[way])))
            except PreftuneError as error:
                texts.append(f"refused: {error.what.partition(', and ')[2] or error.what}")
    except PreftuneError as error:
        return "", f"refused: {error.what.partition(': ')[2] or error.what}", ""
    return _cell(opened), texts[0], texts[1]


def _cell(text: str) -> str:
    marked = text.replace(THOUGHT, "THOUGHT").replace(ANSWER, "ANSWER").replace("|", "\\|").replace("\n", "⏎")
    return f"`{marked}`"


def page() -> str:
    """docs/templates.md."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for name in shipped():
        rows.setdefault(trained_row(name), []).append(name)
    lines = [
        "# Templates",
        "",
        "What is trained of a final turn, and parted again when it is sampled, under each chat template that trl "
        f"{version('trl')} ships.",
        "Written by `python -m core.testing.templates > docs/templates.md`; how it is found is told in",
        "[trained tokens](training-tokens.md#thoughts). A line end is ⏎.",
        "",
        "A thought may stand in the data in a field of its own or in `<think>…</think>` before the answer: both train",
        "the same. Where a template knows no thoughts, one that stands in the text is left as it was written.",
        "",
        "| template | opening, after the question | answer alone | thought and answer |",
        "|---|---|---|---|",
        *(f"| {', '.join(names)} | {' | '.join(cells)} |" for cells, names in rows.items()),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(page())
