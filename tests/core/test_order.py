"""The order in which steps take examples: whole epochs, pure in its arguments, sorted where that was asked for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from core.errors import ConfigError
from core.settings.schema import Order
from core.training.order import step_items


def items(count: int) -> list[SimpleNamespace]:
    return [SimpleNamespace(place=place, tokens=(place * 37) % 101 + 1) for place in range(count)]


@pytest.mark.parametrize("order", list(Order))
@pytest.mark.parametrize(("count", "batch"), [(24, 4), (25, 4), (7, 16), (301, 8)])
def test_every_epoch_takes_every_item_once(order, count, batch):
    data = items(count)
    steps = -(-3 * count // batch)
    taken = [item.place for step in range(steps) for item in step_items(data, step, batch, 3, order)]
    for epoch in range(3):
        assert sorted(taken[epoch * count : (epoch + 1) * count]) == list(range(count))


@pytest.mark.parametrize("order", list(Order))
def test_a_step_depends_on_its_arguments_alone(order):
    straight = [step_items(items(50), step, 8, 3, order) for step in range(20)]
    assert [step_items(items(50), step, 8, 3, order) for step in reversed(range(20))][::-1] == straight
    assert [step_items(items(50), step, 8, 4, order) for step in range(20)] != straight


def test_grouped_steps_hold_like_lengths_in_every_epoch():
    data = items(403)

    def spread(order: Order, steps: range) -> float:
        batches = [[item.tokens for item in step_items(data, step, 8, 1, order)] for step in steps]
        return sum(max(batch) - min(batch) for batch in batches) / len(batches)

    for steps in (range(1, 49), range(52, 99)):  # inside the first and the second epoch
        assert spread(Order.grouped, steps) < 0.2 * spread(Order.shuffled, steps)
    lengths = [step_items(data, step, 8, 1, Order.grouped)[0].tokens for step in range(40)]
    assert lengths != sorted(lengths)


def test_curriculum_goes_from_short_to_long_once():
    data = items(100)
    first = [item.tokens for step in range(10) for item in step_items(data, step, 10, 1, Order.curriculum)]
    second = [item.tokens for step in range(10, 20) for item in step_items(data, step, 10, 1, Order.curriculum)]
    assert first == sorted(first)
    assert second != sorted(second)


def test_a_step_of_a_few_items_a_thousand_times_is_refused():
    assert len(step_items(list(range(4)), 0, 400, 1)) == 400
    with pytest.raises(ConfigError, match=r"'stage\.batch_size' is 1000000000, and there are 4 examples"):
        step_items(list(range(4)), 0, 10**9, 1)
