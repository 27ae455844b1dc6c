"""The processes that train one model together, as a launcher such as torchrun starts them.

Each makes the whole batch of a step, takes its share of the micro-batches, and adds its gradients to the others'. A
step's losses are shares of the whole step, so the sum is what one process would have. The first process alone shows,
evaluates and writes. Torch comes in when there is more than one. See docs/adr/0019.
"""

from __future__ import annotations

import atexit
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from core.errors import ConfigError, TrainingError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

_PATIENCE = timedelta(days=1)
"""The others wait as long as this while the first one evaluates or exports."""
_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
"""Variables that would make processes started by this one wait for peers of their own."""


@contextmanager
def _others() -> Iterator[None]:
    """Raise TrainingError where another process is gone."""
    try:
        yield
    except RuntimeError as error:
        raise TrainingError("another process of this run has ended", mend="its own message tells why") from error


def highest_of(*several: Mapping[str, float]) -> dict[str, float]:
    """The largest value of each name; a mapping need not have every name."""
    peaks: dict[str, float] = {}
    for values in several:
        peaks |= {name: max(value, peaks.get(name, value)) for name, value in values.items()}
    return peaks


@dataclass(frozen=True)
class Peers:
    """This process among those that train together. With `count` 1 every method does nothing."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process shows, evaluates and writes."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part of a step's micro-batches; may be empty."""
        return items[self.rank :: self.count]

    def broadcast(self, value: T) -> T:
        """The first process's value, in every process."""
        if self.count == 1:
            return value
        import torch.distributed as dist

        box: list[Any] = [value]
        with _others():
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def all_reduce(self, tensor: Tensor) -> None:
        """Make `tensor` the sum of every process's, in place."""
        if self.count > 1:
            import torch.distributed as dist

            with _others():
                dist.all_reduce(tensor)

    def all_reduce_sums(self, values: Mapping[str, float]) -> dict[str, float]:
        """The sums over the processes, by name; a process need not have every name."""
        total: dict[str, float] = defaultdict(float)
        for part in self.all_gather(dict(values)):
            for name, value in part.items():
                total[name] += value
        return dict(total)

    def all_reduce_peaks(self, values: Mapping[str, float]) -> dict[str, float]:
        """The largest over the processes, by name; a process need not have every name."""
        return highest_of(*self.all_gather(dict(values)))

    def all_gather(self, value: T) -> list[T]:
        """Every process's value, in order of rank."""
        if self.count == 1:
            return [value]
        import torch.distributed as dist

        boxes: list[Any] = [None] * self.count
        with _others():
            dist.all_gather_object(boxes, value)
        return boxes

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """The block in the first process, then in the others, which find its files. An exception in the first one is
        left to the launcher, which ends the others."""
        if not self.first:
            self.broadcast(None)
        yield
        if self.first:
            self.broadcast(None)


ALONE = Peers()
"""One process."""


_joined: list[Peers] = []


def join(cpu: bool) -> Peers:
    """The processes of this run; the first call waits until all have joined.

    cpu: whether to meet over gloo on a machine with GPUs too.
    Raises: ConfigError where the launcher's variables name no place to meet, or no others.
    """
    if not _joined and _wanted() > 1:
        _joined.append(_meet(cpu))
    return _joined[0] if _joined else ALONE


def _wanted() -> int:
    """The number of processes that the launcher's variables tell of."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if count > 1 and missing:
        raise ConfigError(
            f"WORLD_SIZE is {count}, but {', '.join(missing)} is not set",
            "the environment",
            "start the processes with `torchrun --nproc_per_node N -m core …`, or unset WORLD_SIZE",
        )
    if "WORLD_SIZE" not in os.environ and {"ACCELERATE_USE_CPU", "MASTER_ADDR"} <= os.environ.keys():
        raise ConfigError(
            "`accelerate launch` was asked for several processes, but on CPU it starts one alone",
            "the environment",
            "use `torchrun --nproc_per_node N -m core …`",
        )
    return count


def _meet(cpu: bool) -> Peers:
    import torch
    import torch.distributed as dist
    from accelerate import PartialState

    state = PartialState(cpu=cpu or not torch.cuda.is_available(), timeout=_PATIENCE)
    atexit.register(lambda: dist.destroy_process_group() if dist.is_initialized() else None)
    for name in _LAUNCHER:
        os.environ.pop(name, None)
    return Peers(state.process_index, state.num_processes)
