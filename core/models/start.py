"""What a stage starts from: folders of weights, their tokenizer, number format and device. Nothing loads until it is
asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from core.errors import ModelError
from core.files import atomic_folder
from core.models.loading import has_plain_names, load_module
from core.planning.sources import resolve_source
from core.settings.schema import Device, Dtype, ModelConfig, RunConfig
from core.tokens.codec import ChatCodec, load_codec
from core.tokens.tokenizer_files import load_tokenizer


@dataclass(frozen=True)
class Start:
    """The start of a stage's policy, and of what is made beside it."""

    cfg: RunConfig
    scratch: Path
    """Folder that may be written into; a plain copy of an adapter goes to `scratch/engine`."""
    weights: Path | None = None
    """Folder of the weights; None takes `model.source`."""
    reward_model: Path | None = None
    """Folder of the learned reward model, where there is one."""
    own_codec: ChatCodec | None = None
    """The tokenizer, where it is not the folder's own."""

    @cached_property
    def folder(self) -> Path:
        """Folder of the starting weights; downloads or converts where that is needed."""
        return self.weights if self.weights is not None else resolve_source(self.cfg.model)

    @cached_property
    def codec(self) -> ChatCodec:
        """The checked tokenizer. Raises ModelError for one that would train the wrong tokens."""
        return self.own_codec or load_codec(self.folder, self.cfg.model)

    @cached_property
    def reward_codec(self) -> ChatCodec | None:
        """The reward model's own tokenizer, where its vocabulary or its chat template is another than the policy's: it
        must read texts then, not the policy's token ids. None where both agree.

        Raises ModelError for one that has to be used and cannot.
        """
        tokenizer = self._reward_tokenizer
        if tokenizer is None:
            return None
        template = tokenizer.chat_template or self.codec.tokenizer.chat_template
        if self._shares_vocabulary and template == self.codec.tokenizer.chat_template:
            return None
        return load_codec(Path(self._reward_config.source), self._reward_config)

    def check_critic(self) -> None:
        """Raise ModelError where a critic that starts from the reward model would read another vocabulary's ids."""
        if not self._shares_vocabulary:
            raise ModelError(
                "the critic starts from the reward model, whose vocabulary is another than the policy's",
                f"{self.reward_model} and {self.folder}",
                "choose an algorithm without a critic, whose rewards are read from texts, or a reward model with the "
                "policy's tokenizer",
            )

    @property
    def _reward_config(self) -> ModelConfig:
        source = str(self.reward_model)
        return replace(self.cfg.model, source=source, chat_template=None, eos_token=None, pad_token=None)

    @cached_property
    def _reward_tokenizer(self) -> Any:
        if self.reward_model is None:
            return None
        return load_tokenizer(self.reward_model, bool(self.cfg.model.trust_remote_code))

    @cached_property
    def _shares_vocabulary(self) -> bool:
        theirs = self._reward_tokenizer
        return theirs is None or theirs.get_vocab() == self.codec.tokenizer.get_vocab()

    @cached_property
    def plain(self) -> Path:
        """A folder with a plain model, for engines and adapters that can stand on nothing else: the starting weights,
        an adapter merged into its base, wrappers off."""
        if has_plain_names(self.folder, self.cfg):
            return self.folder
        merged = self.scratch / "engine"
        if not merged.is_dir():
            module = load_module(self.folder, self.cfg, self.dtype, "CAUSAL_LM")
            with atomic_folder(merged) as part:
                module.save_pretrained(part)  # type: ignore[operator]
                self.codec.tokenizer.save_pretrained(part)
        return merged

    @cached_property
    def device(self) -> torch.device:
        """Where the models live."""
        if self.cfg.runtime.device is Device.cpu or not torch.cuda.is_available():
            return torch.device("cpu")
        from accelerate import PartialState

        return PartialState().device  # the GPU of this process, where there are several

    @cached_property
    def dtype(self) -> torch.dtype:
        """Number format of weights in forward and backward."""
        return torch.float32 if self.cfg.runtime.dtype is Dtype.fp32 else torch.bfloat16

    @property
    def max_length(self) -> int:
        """Longest prompt and completion together, in tokens."""
        return self.cfg.model.max_length
