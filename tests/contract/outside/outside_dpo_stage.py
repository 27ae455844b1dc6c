"""The objective of outside_dpo."""

import torch
from torch.nn import functional as F

from core.api import Batch, LossOutput, hookimpl
from core.torch_api import StageData, pair_rows, pairs, step_items, sum_by_completion


class Stage:
    @hookimpl
    def build_data(self, run):
        return StageData(pairs(run, run.plan.dataset.train))

    @hookimpl
    def collect_batch(self, run, data, step):
        batch = step_items(data.train, step, run.cfg.stage.batch_size, run.seed_for("order"))
        rows = pair_rows(batch, run.cfg.stage.micro_batch_tokens)
        return Batch([rows], tokens=sum(pair.tokens for pair in batch))

    @hookimpl
    def compute_loss(self, run, models, micro_batch):
        row, total = micro_batch.packed, micro_batch.total
        gaps = []
        for logprob_M in (models.reference_logprobs(row), models.call("policy", row)[0]):
            sums_C = sum_by_completion(logprob_M, row.completion_M.to(logprob_M.device), row.completions)
            gaps.append((sums_C[0::2], sums_C[1::2]))
        (reference_chosen, reference_rejected), (chosen, rejected) = gaps
        beta = run.cfg.stage.beta
        loss_B = -F.logsigmoid(beta * ((chosen - rejected) - (reference_chosen - reference_rejected)))
        with torch.no_grad():
            margin_B = beta * (chosen - reference_chosen) - beta * (rejected - reference_rejected)
        return LossOutput(loss_B.sum() * (1 / total), {"margin": margin_B.sum().item() * (1 / total)})
