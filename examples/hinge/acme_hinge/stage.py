"""Hinge on (log p(chosen) - log p(rejected)), minus chosen_weight * log p(chosen); sums over tokens, mean of pairs."""

from torch.nn import functional as F

from acme_hinge import HingeConfig
from core.api import Batch, LossOutput
from core.torch_api import PairRow, Stage, StageData, pair_rows, sum_by_completion


class Hinge(Stage[HingeConfig, StageData, PairRow]):
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
        sums_C = sum_by_completion(logprob_M, row.completion_M.to(logprob_M.device), row.completions)
        chosen_B, rejected_B = sums_C[0::2], sums_C[1::2]
        loss_B = F.relu(cfg.margin - (chosen_B - rejected_B)) - cfg.chosen_weight * chosen_B
        return LossOutput(
            loss_B.sum() / micro_batch.total,
            {"accuracy": (chosen_B > rejected_B).float().sum().item() / micro_batch.total},
        )
