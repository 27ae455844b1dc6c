"""Selective self-to-supervised fine-tuning with its relatives SSR and SDFT. Torch-free entry module."""

from __future__ import annotations

from dataclasses import dataclass, field

from core.api import ConfigError, StageConfig, StageSpec, Work, check_regex, hookimpl, number, require
from plugins.sft import SftConfig

REWRITE_PROMPT = """\
Answer the question below in your own words. A reference shows what the right answer is; write a complete answer of
your own that reaches the same result, and do not mention the reference.

Question:
{question}

Reference:
{reference}

Your answer:"""

REMNANTS = [
    r"<\|\w+\|>",
    r"\[/?INST\]|<</?SYS>>",
    r"<(start|end)_of_turn>",
    r"^(user|human|assistant|system)\s*:?\s*$",
    r"^###\s*(instruction|response|input)\b",
]
"""Texts of chat templates, which no answer should hold; case is ignored, ^ and $ match at each line."""

LEAKS = [
    r"\b(a|the|this|your) (reference|given answer|provided (answer|solution))\b",
    r"\b(reference|gold|model) (answer|solution|response|output)\b",
    r"\b(reworded|rephras\w+|paraphras\w+|rewritten)\b",
    r"\bin (my|your|our) own words\b",
    r"\bas (shown|stated|given|provided) (in|by) the (solution|answer)\b",
]
"""Talk about the reference, which nobody sees who is given the question alone; case is ignored."""


@dataclass
class SelfConfig(SftConfig):
    """Settings of `stage=s3ft algorithm=ssr`, and what all variants share. The papers' learning rate, epochs, batch and
    decoding are not published; these are ours."""

    lr: float = 2e-5
    """Peak learning rate (about 1e-4 with adapters)."""
    epochs: float = 2.0
    """Passes over the targets."""
    samples: int = number(1, above=0, at_most=10_000)
    """Answers drawn for each prompt; of those judged right the likeliest a token under the start model is taken."""
    temperature: float = number(0.0, at_least=0, at_most=100)
    """Sampling temperature of the answers; 0 is greedy."""
    top_p: float = number(1.0, above=0, at_most=1)
    """Nucleus of the answers."""
    max_new_tokens: int = number(256, above=0, at_most=1_000_000)
    """Longest answer in tokens; one that is cut off counts as wrong."""
    build_batch: int = number(64, above=0, at_most=1_000_000)
    """Items that are answered, judged and written to the disk together."""
    remnants: list[str] = field(default_factory=lambda: list(REMNANTS))
    """Regular expressions for remnants of chat templates; an answer with one counts as wrong."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for index, pattern in enumerate(self.remnants):
            check_regex(f"stage.remnants[{index}]", pattern)
        if self.samples > 1 and self.temperature == 0:
            raise ConfigError(
                f"'stage.samples' is {self.samples}, but greedy samples are all alike",
                mend="set stage.temperature=0.7, or stage.samples=1",
            )

    def work(self) -> Work:
        """Answers of each prompt, made before the first step."""
        return Work(self.samples, self.max_new_tokens)


@dataclass
class RewriteConfig(SelfConfig):
    """Settings of `stage=s3ft` with `algorithm=s3ft` or `algorithm=sdft`: the model also rewrites the gold answer."""

    rewrite_prompt: str = REWRITE_PROMPT
    """What the model is asked when it shall give the gold answer in its own words; {question} is the last message of
    the prompt, {reference} the gold answer."""
    leaks: list[str] = field(default_factory=lambda: list(LEAKS))
    """Regular expressions for talk about the reference; a rewritten answer with one counts as wrong."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("{question}", "{reference}"):
            require(name in self.rewrite_prompt, "stage.rewrite_prompt", f"a text with {name}", self.rewrite_prompt)
        for index, pattern in enumerate(self.leaks):
            check_regex(f"stage.leaks[{index}]", pattern)


def _variant(name: str, config: type[StageConfig], summary: str, paper: str, default: bool = False) -> StageSpec:
    return StageSpec(
        name="s3ft", algorithm=name, config=config, impl=f"plugins.s3ft.stage:{name.capitalize()}", data="sft",
        summary=summary, paper=paper, default=default, builds=True,
    )  # fmt: skip


@hookimpl
def register_stages() -> list[StageSpec]:
    """The stage `s3ft` in its variants."""
    return [
        _variant("s3ft", RewriteConfig, "own answer where it is right, else own rewriting of the gold answer where it "
                 "is right, else the gold answer", "Gupta et al. 2025, arXiv:2502.08130", default=True),
        _variant("ssr", SelfConfig, "own answer where it is right, else the gold answer",
                 "Gupta et al. 2024, arXiv:2409.04787"),
        _variant("sdft", RewriteConfig, "own rewriting of the gold answer where it is right, else the gold answer",
                 "Yang et al. 2024, arXiv:2402.13669"),
    ]  # fmt: skip
