"""The objective of outside_dpo."""

import torch
from outside_dpo import Config
from torch.nn import functional as F

from core.api import Batch, LossOutput
from core.torch_api import PairRow, Stage, StageData, pair_rows, step_items, sum_by_completion


class Outside(Stage[Config, StageData, PairRow]):
    def build_data(self):
        return StageData(self.run.examples.pairs(self.run.plan.dataset.train))

    def collect_batch(self, models, data, step):
        batch = step_items(data.train, step, self.cfg.batch_size, self.run.seed_for("order"))
        rows = pair_rows(batch, self.cfg.micro_batch_tokens)
        return Batch([rows], tokens=sum(pair.tokens for pair in batch))

    def compute_loss(self, models, micro_batch):
        row, total = micro_batch.packed, micro_batch.total
        gaps = []
        for logprob_M in (models.reference_logprobs(row), models.call("policy", row)[0]):
            sums_C = sum_by_completion(logprob_M, row.completion_M.to(logprob_M.device), row.completions)
            gaps.append((sums_C[0::2], sums_C[1::2]))
        (reference_chosen, reference_rejected), (chosen, rejected) = gaps
        beta = self.cfg.beta
        loss_B = -F.logsigmoid(beta * ((chosen - rejected) - (reference_chosen - reference_rejected)))
        with torch.no_grad():
            margin_B = beta * (chosen - reference_chosen) - beta * (rejected - reference_rejected)
        return LossOutput(loss_B.sum() * (1 / total), {"margin": margin_B.sum().item() * (1 / total)})
