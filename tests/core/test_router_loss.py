"""The load-balancing loss of mixtures of experts: added where the config asks for it, as transformers adds it."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM, PhimoeConfig, PhimoeForCausalLM

from core.models.packed import pack_texts
from core.models.road import Road
from core.models.roles import TokenModel
from core.settings.schema import Rows

SIZES = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "num_local_experts": 4, "initializer_range": 0.3,
    "output_router_logits": True, "router_aux_loss_coef": 0.5,
}  # fmt: skip
TEXT = [5, 9, 33, 41, 8, 57, 30, 12, 4, 22]


def mixtral(**changes):
    torch.manual_seed(0)
    return MixtralForCausalLM(MixtralConfig(**{**SIZES, **changes})).eval()


def phimoe():
    torch.manual_seed(0)
    return PhimoeForCausalLM(PhimoeConfig(**SIZES, sliding_window=None, lm_head_bias=True)).eval()


@pytest.mark.parametrize("rows", [Rows.packed, Rows.padded])
@pytest.mark.parametrize("make", [mixtral, phimoe], ids=["a matrix for a head", "a head that does more"])
def test_loss_and_gradients_are_those_of_transformers(make, rows):
    plain = make()
    model = TokenModel(copy.deepcopy(plain))
    model.road = Road(rows)
    ids = torch.tensor([TEXT])
    theirs = plain(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss
    with model.router.collect():
        nll = -model(pack_texts([TEXT]))[0].mean()
        ours = nll + model.router.loss()
    assert model.router.loss() is None
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)
    assert ours.item() - nll.item() > 0.3
    ours.backward()
    theirs.backward()
    for (name, p), q in zip(plain.named_parameters(), model.module.parameters(), strict=True):
        assert (p.grad - q.grad).abs().max() <= 1e-5 * max(1.0, p.grad.abs().max().item()), name


def test_nothing_is_added_that_the_config_does_not_ask_for():
    for model in (TokenModel(mixtral(output_router_logits=False)), TokenModel(mixtral(router_aux_loss_coef=0.0))):
        assert model.router.coefficient == 0.0
    model = TokenModel(mixtral())
    assert model.router.coefficient == 0.5
    with model.router.collect(), torch.no_grad():
        model(pack_texts([TEXT]))
        assert model.router.loss() is None
    model(pack_texts([TEXT]))
    assert model.router.loss() is None


def test_several_passes_are_averaged_over_their_tokens():
    model = TokenModel(mixtral())
    singly = []
    for text in (TEXT, TEXT[:4]):
        with model.router.collect():
            model(pack_texts([text]))
            singly.append(model.router.loss().item())
    with model.router.collect():
        for text in (TEXT, TEXT[:4]):
            model(pack_texts([text]))
        assert model.router.loss().item() == pytest.approx((10 * singly[0] + 4 * singly[1]) / 14, rel=1e-6)
