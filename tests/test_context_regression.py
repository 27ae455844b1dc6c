"""The synthetic study of contextual fine-tuning: its sequences, and its claim, in small and (long) as documented."""

from __future__ import annotations

import pytest
import torch

from benchmarks.context_regression import ARMS, Regressor, Settings, sequences, study, target

SMALL = Settings(layers=1, width=16, heads=2, dimensions=3, pairs=4, batch=8)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_targets_by_hand():
    x = torch.tensor([[[1.0, 2.0], [-1.0, 0.5]]])
    w = torch.tensor([[2.0, -1.0]])
    assert target("polynomial", x, w, generator()).tolist() == [[0.0, -2.5 + 6.25]]
    assert target("relu", x, w, generator()).tolist() == [[0.0, 0.0]]
    other = torch.randn(1, 2, generator=generator()) / 2**0.5
    assert torch.allclose(target("sum", x, w, generator()), (x[0] @ (w + other)[0])[None])


def test_arms_share_inputs_and_labels_and_differ_in_the_prefix():
    made = {arm: sequences(SMALL, "polynomial", arm, generator(7)) for arm in ARMS}
    for x, y in made.values():
        assert x.shape == (8, 8, 3) and torch.equal(x[:, :4], x[:, 4:])
        assert torch.equal(x, made["cft"][0]) and torch.equal(y[:, 4:], made["cft"][1][:, 4:])
    prefix, labels = made["cft"][1][:, :4], made["cft"][1][:, 4:]
    assert torch.allclose(labels, prefix + prefix**2)
    noise = made["negative"][1][:, :4]
    assert not torch.allclose(noise, prefix) and noise.std() == pytest.approx(1.0, abs=0.4)


def test_a_hidden_prefix_cannot_be_seen_and_labels_of_later_pairs_neither():
    model = Regressor(SMALL)
    x, y = sequences(SMALL, "polynomial", "cft", generator())
    with torch.no_grad():
        before = model(x, y, hidden=4)
        other = y.clone()
        other[:, :4] += 3.0
        assert torch.equal(model(x, other, hidden=4)[:, 4:], before[:, 4:])
        assert not torch.allclose(model(x, other)[:, 4:], model(x, y)[:, 4:])
        later = y.clone()
        later[:, 6] += 3.0
        assert torch.allclose(model(x, later)[:, :7], model(x, y)[:, :7], atol=1e-6)
        assert not torch.allclose(model(x, later)[:, 7], model(x, y)[:, 7])


@pytest.mark.parametrize(
    "settings",
    [
        # Nothing was learnt before, and two pairs in two dimensions: what the prefix tells is found within seconds.
        pytest.param(
            Settings(
                layers=2, width=32, heads=2, dimensions=2, pairs=2, batch=64, pretrain_steps=1, tune_steps=800,
                tune_lr=5e-3,
            ), id="in small", marks=pytest.mark.slow,
        ),
        # A third of the documented run: enough for this factor.
        pytest.param(Settings(tune_steps=1200), id="as documented", marks=pytest.mark.long),
    ],
)  # fmt: skip
@pytest.mark.timeout(3600)
def test_informative_context_helps_to_learn_a_polynomial(settings):
    result = study(settings)
    error = {arm: result["errors"]["polynomial"][arm]["mean"] for arm in ARMS}
    assert error["cft"] * 5 <= min(error["negative"], error["none"]), error
    assert 1 / 3 < error["negative"] / error["none"] < 3, error
