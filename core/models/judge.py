"""The one judge of a forward pass: the plain transformers model, in its own attention, one sequence at a time.

Before anything is trained or scored, a model's rows are run on each road and compared with it, in fp32 where there is
room for a second copy of the weights, else within the rounding that the plain model itself shows. Packed rows are
taken where they are equal to it, else padded ones, else one sequence at a time. What sees later tokens is no causal
language model and is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import ModelError
from core.models.attention import NotPackable
from core.models.logprobs import logits_logprobs
from core.models.merging import is_quantized
from core.models.packed import Packed, PromptGroup, pack
from core.models.reach import check_positions, reach
from core.models.road import Road
from core.models.roles import ScoreModel, TokenModel
from core.settings.schema import Rows

_FLOOR = {True: 1e-5, False: 0.02}
"""Difference in nats (or in a score) that is accepted in any case: in fp32, and in a lower number format."""
_CEILING = {True: 2e-3, False: 0.25}
"""Difference that is accepted in no case."""
_NOISE = {True: 10, False: 3}
"""Difference that is accepted, as a multiple of the plain model's own rounding."""
_LEAK = {True: 1e-3, False: 0.1}
"""Largest effect of a later token on earlier values, as a share of its effect on later ones."""
_BUDGET = {"cpu": 6e10, "cuda": 6e12}
"""Parameters times tokens of the longest sequence that is tried: about a second."""


def judge(model: TokenModel | ScoreModel, max_length: int, rows: Rows = Rows.auto) -> None:
    """Set the model's road: the first that gives what the plain model gives, or the one that `rows` asks for.

    max_length: longest sequence in tokens that will come.
    Raises ModelError for a model that sees later tokens or has no positions for max_length, for values that are not
    finite, and for a road that was asked for but gives something else.
    """
    check_positions(model.base, max_length)
    limit, alone = reach(model, max_length)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            with _precise(model) as exact:
                bench = _causal_bench(model, limit, max_length, exact)
                road = _first_equal(bench, rows, limit, alone, max_length)
            model.road = road
            _try_as_it_runs(bench, rows)
    finally:
        model.train(was_training)


def _causal_bench(model: TokenModel | ScoreModel, limit: int | None, max_length: int, exact: bool) -> _Bench:
    """The bench of a causal model, whose own attention is transformers' default for it, or else the plain one."""
    bench = _Bench(model, limit, max_length, exact)
    try:
        bench.check_causal()
    except ModelError:
        # Some families forget the causal mask where another implementation would imply it.
        if model.config._attn_implementation == "eager" or not _hands_attention_over(model.base):
            raise
        model.base.set_attn_implementation("eager")
        bench = _Bench(model, limit, max_length, exact)
        bench.check_causal()
    return bench


def _first_equal(bench: _Bench, rows: Rows, limit: int | None, alone: bool, max_length: int) -> Road:
    """The road to take."""
    model, found = bench.model, ""
    matters = limit is not None and limit < max_length
    for kind in (Rows.packed, Rows.padded, Rows.single):
        if kind is Rows.packed and (model.prompted or rows not in (Rows.auto, Rows.packed)):
            found = "a prompt method of peft" if model.prompted else f"model.rows={rows.value}"
            continue
        if kind is Rows.padded and ((alone and matters) or rows is Rows.single):
            found = found or f"model.rows={rows.value}"
            continue
        why = found
        if kind is Rows.packed and matters:
            why = "its positions are scaled by length" if alone else "they are longer than its window"
        road = Road(kind, why, limit if kind is Rows.packed and matters else None, alone and kind is Rows.packed)
        fault = bench.fault(road)
        if fault is None:
            return road
        found = found or fault
        if rows is Rows.packed:
            break
    raise ModelError(
        f"{rows.value if rows is Rows.packed else 'no'} rows give what the plain model gives: {found}",
        f"model type {model.config.model_type}, model.rows",
        "set model.rows=auto" if rows is Rows.packed else "please report the model type",
    )


def _try_as_it_runs(bench: _Bench, rows: Rows) -> None:
    """A row in the model's own number format, which may take other kernels; what fails there takes another road.
    Raises ModelError where none is left."""
    model = bench.model
    fault = _fault_as_it_runs(bench)
    if fault and model.road.rows is Rows.packed and rows is not Rows.packed:
        model.road = Road(Rows.padded, f"packed rows fail in {_name(model.dtype)} ({fault})")
        fault = _fault_as_it_runs(bench)
    if fault and isinstance(model, TokenModel) and model.plain_head:
        model.plain_head = False
        fault = _fault_as_it_runs(bench)
    if fault:
        raise ModelError(
            f"{model.road.rows.value} rows fail in {_name(model.dtype)}: {fault}",
            f"model type {model.config.model_type}",
            "set model.rows=auto" if rows is Rows.packed else "set runtime.dtype=fp32",
        )


def _fault_as_it_runs(bench: _Bench) -> str | None:
    try:
        finite = bool(torch.isfinite(bench.run(bench.rows[0])).all())
    except (NotPackable, RuntimeError, NotImplementedError) as error:
        return _first_line(error)
    return None if finite else "values that are not finite"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class _Bench:
    """Rows to try a model on, and what the plain model says of them."""

    def __init__(self, model: TokenModel | ScoreModel, limit: int | None, max_length: int, exact: bool) -> None:
        self.model, self.exact = model, exact
        self.ids = _plain_ids(model, 64)
        parameters = sum(parameter.numel() for parameter in model.module.parameters())
        most = min(max_length, int(_BUDGET.get(model.device.type, _BUDGET["cpu"]) / max(parameters, 1)))
        short = 15 if limit is None else min(15, limit)
        # What packed rows serve, up to their limit, and what lies beyond it, as far as it can come and costs little.
        lengths = [short] if limit is None else [short, min(limit, most), min(limit + 8, most)]
        self.rows = [self._row(length) for length in sorted(set(lengths)) if length >= min(short, 4)]
        self.expected = [self._plain_row(row) for row in self.rows]

    def _row(self, length: int) -> Packed:
        """A row whose longest sequence has `length` tokens: two completions after one prompt, and shorter sequences."""
        half = max(1, 2 * length // 5)
        rest = max(1, length - half)
        groups = [PromptGroup(self._cut(0, half), [self._cut(half, max(1, rest // 2)), self._cut(20, rest)])]
        if length >= 8:
            groups += [
                PromptGroup(self._cut(30, 3), [self._cut(33, 4)]),
                PromptGroup(self._cut(40, 1), [self._cut(41, 7)]),
            ]
        return pack(groups)

    def _cut(self, start: int, count: int) -> list[int]:
        return [self.ids[(start + at) % len(self.ids)] for at in range(count)]

    def plain(self, ids: Sequence[int]) -> Tensor:
        """What the plain model says of one sequence: logits [T, V] or scores [T], float32."""
        model = self.model
        ids_BT = torch.tensor([list(ids)], device=model.device)
        inputs = {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT), "use_cache": False}
        if isinstance(model, TokenModel):
            return model.module(**inputs).logits[0, -len(ids) :].float()
        scores_T = model.score_of(model.body(**inputs).last_hidden_state[0])
        whole = model.module(**inputs).logits[0, 0].float() - model.offset
        if not (scores_T[-1] - whole).abs() <= max(_CEILING[self.exact], 0.02 * whole.abs().item()):
            raise ModelError(
                "the model's score is more than a matrix on its last hidden state",
                f"model type {model.config.model_type}",
                "name a reward model whose class has a linear head named 'score'",
            )
        return scores_T

    def _plain_row(self, row: Packed) -> Tensor:
        """What `run` should give for a row."""
        parts = []
        for root, own in row.leaves:
            ids = [*row.input_ids_T[slice(*root)].tolist(), *row.input_ids_T[slice(*own)].tolist()]
            first = root[1] - root[0] - 1
            said = self.plain(ids)
            if isinstance(self.model, TokenModel):
                targets = torch.tensor(ids[first + 1 :], device=said.device)
                said = logits_logprobs(said[first:-1], targets)[0]
            else:
                said = said[first + 1 :]
            parts.append(said)
        return torch.cat(parts)

    def run(self, row: Packed) -> Tensor:
        """Log-probabilities or scores [M] at the completion tokens, on the model's road."""
        if isinstance(self.model, TokenModel):
            return self.model(row)[0]
        return self.model(row, row.taken_M.to(self.model.device))

    def check_causal(self) -> None:
        """Refuse a model whose earlier predictions depend on later tokens; measure its rounding."""
        first, more, other = self._cut(0, 8), self._cut(8, 5), self._cut(50, 5)
        whole = self.plain([*first, *more])
        if not bool(torch.isfinite(whole).all()):
            raise ModelError(
                "the plain model gives values that are not finite",
                f"model type {self.model.config.model_type}",
                "the weights are damaged; load them again",
            )
        ahead = self._looks_ahead([*first, *more], len(first))
        if ahead is None:  # a kernel without a backward pass: the values have to do
            gap = (whole - self.plain([*first, *other])).abs()
            ahead = gap[:8].max().item() > _LEAK[self.exact] * gap[8:].max().item()
        if ahead:
            raise ModelError(
                "a later token changes what is predicted before it: this is no causal language model, but sees the "
                "whole text as an encoder does",
                f"model type {self.model.config.model_type}",
                "name a causal (decoder-only) language model",
            )
        gaps = [whole[:8] - self.plain(first)]
        if self.exact:
            gaps.append(whole - self._nudged([*first, *more]))
        self.noise = max(gap.abs().max().item() for gap in gaps)

    def _nudged(self, ids: Sequence[int]) -> Tensor:
        """What the plain model says where every matrix product ends one unit in the last place of fp32 off, up or down:
        how far rounding alone takes this depth and these weights."""
        source = torch.Generator().manual_seed(0)

        def nudge(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            if not isinstance(output, Tensor):  # a router, which gives indices too
                return output
            sign = torch.randint(0, 2, output.shape, generator=source).mul_(2).sub_(1).to(output.device)
            return output * (1 + torch.finfo(torch.float32).eps * sign)

        handles = [part.register_forward_hook(nudge) for part in self.model.modules() if isinstance(part, nn.Linear)]
        try:
            return self.plain(ids)
        finally:
            for handle in handles:
                handle.remove()

    def _looks_ahead(self, ids: Sequence[int], count: int) -> bool | None:
        """Whether what is said at the first `count` tokens has a gradient at later ones; None where there is no
        gradient. A mask makes it exactly 0, whatever the size of the weights."""
        embedded: list[Tensor] = []

        def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
            embedded.append(output.detach().requires_grad_())
            return embedded[-1].clone()

        handle = self.model.base.get_input_embeddings().register_forward_hook(keep)
        try:
            with torch.enable_grad():
                said = self.plain(ids)[:count]
                said = torch.log_softmax(said, 1)[:, self.ids[:4]] if said.dim() > 1 else said
                gradient_TX = torch.autograd.grad(said.sum(), embedded[0])[0][0].float().abs()
        except RuntimeError:
            return None
        finally:
            handle.remove()
        return gradient_TX[count:].max().item() > 1e-8 * gradient_TX[:count].max().item()

    def fault(self, road: Road) -> str | None:
        """What is wrong with the road, or None. Leaves the model on it."""
        model = self.model
        model.road = road
        if road.rows is Rows.packed and not _hands_attention_over(model.base):
            return "its attention cannot be replaced"
        heads = [True, False] if isinstance(model, TokenModel) and model.plain_head else [False]
        fault = None
        for matrix in heads:
            if isinstance(model, TokenModel):
                model.plain_head = matrix
            fault = self._difference()
            if fault is None:
                return None
        if isinstance(model, TokenModel):
            model.plain_head = heads[0]
        return fault

    def _difference(self) -> str | None:
        accepted = min(max(_FLOOR[self.exact], _NOISE[self.exact] * self.noise), _CEILING[self.exact])
        worst = 0.0
        for row, expected in zip(self.rows, self.expected, strict=True):
            try:
                ours = self.run(row)
            except NotPackable as error:
                return str(error)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # whatever a body makes of keywords and shapes that it does not know
                return f"{self.model.road.rows.value} rows fail: {_first_line(error)}"
            difference = (ours - expected).abs().max().item()
            worst = max(worst, difference if math.isfinite(difference) else math.inf)
        if worst <= accepted:
            return None
        unit = "nats a token" if isinstance(self.model, TokenModel) else "in the score"
        return f"{self.model.road.rows.value} rows differ from the plain model by {worst:.2g} {unit}"


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:160]


def _hands_attention_over(base: Any) -> bool:
    """Whether the model's code looks its attention up where ours is registered."""
    return bool(base._can_set_attn_implementation())


def _plain_ids(model: TokenModel | ScoreModel, count: int) -> list[int]:
    """Token ids spread over the vocabulary, none of them special."""
    rows = model.base.get_input_embeddings().weight.shape[0]
    size = min(rows, getattr(model.config.get_text_config(decoder=True), "vocab_size", rows) or rows)
    special = {0}
    for config in (model.config, model.config.get_text_config(decoder=True)):
        for name, value in config.to_dict().items():
            if name.endswith(("token_id", "token_index")):
                special |= {item for item in (value if isinstance(value, list) else [value]) if isinstance(item, int)}
    plain = [index for index in range(min(size, 4096)) if index not in special] or [0]
    generator = torch.Generator().manual_seed(1)
    return [plain[int(at)] for at in torch.randint(len(plain), (count,), generator=generator)]


@contextmanager
def _precise(model: nn.Module) -> Iterator[bool]:
    """Within the block the weights stand in fp32, if they can and there is room: yields whether they do. Afterwards
    they are, bit for bit, what they were."""
    tensors = [*model.parameters(), *model.buffers()]
    low = [tensor for tensor in tensors if tensor.dtype in (torch.bfloat16, torch.float16)]
    if not low and not any(is_quantized(part) for part in model.modules()):
        yield True
        return
    needed = 4 * sum(tensor.numel() for tensor in low)
    if any(is_quantized(part) for part in model.modules()) or needed > 0.8 * _free_bytes(low[0].device):
        yield False
        return
    kept = [tensor.data for tensor in low]
    try:
        for tensor in low:
            tensor.data = tensor.data.float()
        yield True
    finally:
        for tensor, data in zip(low, kept, strict=True):
            tensor.data = data


def _free_bytes(device: torch.device) -> float:
    """Memory that is free on a device, as far as the system tells."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return math.inf
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), math.inf)
