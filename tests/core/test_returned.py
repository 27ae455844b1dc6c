"""A stage that returns the wrong thing is told which method, what it must be, and where. No torch."""

import pytest

from core.errors import PluginError
from core.platform.spec_checks import check_returned
from core.types import Batch


def test_the_right_thing_passes():
    batch = Batch([[]])
    assert check_returned(batch, "collect_batch", "acme.stage:Acme") is batch


@pytest.mark.parametrize(("value", "kind"), [([], "list"), (None, "NoneType"), ((1, 2), "tuple")])
def test_another_thing_is_named(value, kind):
    with pytest.raises(PluginError, match=f"collect_batch must return a Batch, returned a {kind}") as told:
        check_returned(value, "collect_batch", "acme.stage:Acme")
    assert told.value.where == "acme.stage:Acme" and "let collect_batch return a Batch" in told.value.mend
