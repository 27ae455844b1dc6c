"""Hinge on (log p(chosen) - log p(rejected)), minus chosen_weight * log p(chosen); sums over tokens, mean of pairs."""

from torch.nn import functional as F

from core.api import Batch, LossOutput, hookimpl
from core.torch_api import StageData, pair_rows, pairs, step_items, sum_by_completion


class Hinge:
    @hookimpl
    def build_data(self, run):
        return StageData(pairs(run, run.plan.dataset.train), pairs(run, run.plan.dataset.heldout))

    @hookimpl
    def collect_batch(self, run, data, step):
        cfg = run.cfg.stage
        batch = step_items(data.train, step, cfg.batch_size, run.seed_for("order"), cfg.order)
        rows = pair_rows(batch, cfg.micro_batch_tokens)
        return Batch(updates=[rows], tokens=sum(pair.tokens for pair in batch))

    @hookimpl
    def compute_loss(self, run, models, micro_batch):
        row, cfg = micro_batch.packed, run.cfg.stage
        logprob_M, _ = models.call("policy", row)
        sums_C = sum_by_completion(logprob_M, row.completion_M.to(logprob_M.device), row.completions)
        chosen_B, rejected_B = sums_C[0::2], sums_C[1::2]
        loss_B = F.relu(cfg.margin - (chosen_B - rejected_B)) - cfg.chosen_weight * chosen_B
        return LossOutput(
            loss_B.sum() / micro_batch.total,
            {"accuracy": (chosen_B > rejected_B).float().sum().item() / micro_batch.total},
        )
