"""Handing the policy's weights to a rollout engine, and proof that they arrived."""

from __future__ import annotations

import torch

from core.data.records import Message
from core.errors import TrainingError
from core.models.merging import checkpoint_weights
from core.models.packed import pack_texts
from core.models.roles import Models
from core.platform.specs import EngineSpec
from core.tokens.codec import ChatCodec
from core.types import RolloutEngine

TOLERANCE = {torch.float32: 0.005, torch.bfloat16: 0.3, torch.float16: 0.05}
"""Largest accepted mean difference in nats of a token's log-probability, by number format.

Measured between in-step weights: 1e-5 in fp32, 0.04 to 0.11 in bf16, whose logits near 20 are rounded to multiples of
0.125 (single tokens differ by up to 0.4, after large updates by more); weights that are two large updates old differ
by 3 nats and more.
"""


def fixed_text(codec: ChatCodec) -> list[int]:
    """Token ids that both sides score after each sync: a rendered prompt and a plain sentence."""
    prompt = codec.prompts([[Message("user", "Name the days of the week.")]])[0]
    return [*prompt, *codec.completions(["Monday, Tuesday, Wednesday, Thursday, Friday, Saturday and Sunday."])[0]]


def hand_over(models: Models, engine: RolloutEngine, spec: EngineSpec, version: int) -> float:
    """Give the engine the policy's weights as they are now; compare log-probabilities of a fixed text.

    version: of the policy. Returns the mean difference in nats of a token's log-probability; 0 where nothing was
    copied. Raises TrainingError when it exceeds the tolerance: the engine would not sample from the trained policy.
    """
    policy, start = models.policy, models.start
    assert policy is not None
    engine.sync(iter(()) if spec.shares_policy else checkpoint_weights(policy.module), version)
    if spec.shares_policy:
        return 0.0
    ids = fixed_text(start.codec)
    theirs = torch.tensor(engine.score([ids])[0])
    with torch.no_grad():
        ours = policy(pack_texts([ids]))[0].cpu()
    difference = (theirs - ours).abs().mean().item()
    tolerance = start.cfg.rollout.sync_tolerance or TOLERANCE[start.dtype]
    if not difference <= tolerance:
        raise TrainingError(
            f"after the weight sync the engine '{engine.name}' and the trainer disagree by {difference:.3g} nats a "
            f"token on a fixed text (tolerance {tolerance:g})",
            f"policy version {version}",
            "the engine does not hold the trained weights; try rollout=transformers, or raise rollout.sync_tolerance "
            "if the gap is one of number format",
        )
    return difference
