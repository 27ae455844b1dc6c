"""-log sigmoid(beta * (mean log p(chosen) - mean log p(rejected)) - gamma), with no reference model."""

import torch
from acme_simpo import SimpoConfig
from torch.nn import functional as F

from core.api import Batch, LossOutput
from core.torch_api import PairRow, Stage, StageData, pair_rows, sum_by_completion


class SimPO(Stage[SimpoConfig, StageData, PairRow]):
    def build_data(self):
        dataset, examples = self.run.plan.dataset, self.run.examples
        return StageData(examples.pairs(dataset.train), examples.pairs(dataset.heldout))

    def collect_batch(self, models, data, step):
        batch = self.next_examples(data.train, step)
        rows = pair_rows(batch, self.cfg.micro_batch_tokens)
        return Batch([rows], tokens=sum(pair.tokens for pair in batch))

    def compute_loss(self, models, micro_batch):
        row, cfg = micro_batch.packed, self.cfg
        logprob_M, _ = models.call("policy", row)
        completion_M = row.completion_M.to(logprob_M.device)
        lengths_C = torch.bincount(completion_M, minlength=row.completions)
        means_C = sum_by_completion(logprob_M, completion_M, row.completions) / lengths_C
        lead_B = means_C[0::2] - means_C[1::2]
        loss_B = -F.logsigmoid(cfg.beta * (lead_B - cfg.gamma_ratio))
        return LossOutput(
            loss_B.sum() / micro_batch.total, {"accuracy": (lead_B > 0).float().sum().item() / micro_batch.total}
        )
