"""-log sigmoid(beta * (mean log p(chosen) - mean log p(rejected)) - gamma), with no reference model."""

import torch
from torch.nn import functional as F

from core.api import Batch, LossOutput, hookimpl
from core.torch_api import StageData, pair_rows, pairs, step_items, sum_by_completion


class SimPO:
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
        completion_M = row.completion_M.to(logprob_M.device)
        lengths_C = torch.bincount(completion_M, minlength=row.completions)
        means_C = sum_by_completion(logprob_M, completion_M, row.completions) / lengths_C
        lead_B = means_C[0::2] - means_C[1::2]
        loss_B = -F.logsigmoid(cfg.beta * (lead_B - cfg.gamma_ratio))
        return LossOutput(
            loss_B.sum() / micro_batch.total, {"accuracy": (lead_B > 0).float().sum().item() / micro_batch.total}
        )
