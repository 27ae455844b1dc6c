"""A stage at work, as its class, the loop and the export see it: values and ways to ask, nothing to assign to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from core.data.draws import seed_from
from core.data.files import find_files
from core.data.formats import formats_of
from core.data.loading import load_records
from core.data.records import Record
from core.data.views import as_schema
from core.models.roles import Models
from core.models.start import Start
from core.planning.named_data import dataset_for
from core.planning.plan import Plan, StagePlan
from core.settings.schema import RunConfig
from core.tokens.codec import ChatCodec
from core.tokens.encoding import ExampleMaker, encoded_prompts
from core.training.log import RunLog
from core.training.parts import Parts
from core.training.peers import ALONE, Peers
from core.types import Batch, Evaluation, LossOutput


class StageCalls(Protocol):
    """The hooks of the chosen stage, called through the plugin manager, so that the wrappers of other packages stand
    around them. The same names and types as the methods of core.training.stage.Stage."""

    def build_data(self, *, run: StageRun) -> Any: ...
    def build_models(self, *, run: StageRun) -> Models: ...
    def make_data(self, *, run: StageRun, models: Models, data: Any) -> Any: ...
    def total_steps(self, *, run: StageRun, data: Any) -> int: ...
    def collect_batch(self, *, run: StageRun, models: Models, data: Any, step: int) -> Batch[Any]: ...
    def compute_loss(self, *, run: StageRun, models: Models, micro_batch: Any) -> LossOutput: ...
    def evaluate(self, *, run: StageRun, models: Models, data: Any, step: int) -> Evaluation: ...
    def fit(self, *, run: StageRun, models: Models, data: Any, recorder: Any) -> Any: ...
    def finish(self, *, run: StageRun, models: Models, data: Any) -> None: ...
    def export(self, *, run: StageRun, models: Models, folder: Path) -> None: ...
    def save_state(self, *, run: StageRun) -> dict[str, Any]: ...
    def load_state(self, *, run: StageRun, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class StageRun:
    """What a stage works with."""

    plan: StagePlan
    """What is carried out: its records, parents, engine, key."""
    chain: Plan
    """The whole plan that it is a part of."""
    folder: Path
    """Where this process writes: the run folder; of a process that is not the first, a folder that goes away."""
    start: Start
    """Weights and tokenizer that the stage starts from, as planned."""
    log: RunLog
    """Lines, warnings, dropped records, seconds."""
    parts: Parts
    """Engines, scorers, the judge: built when they are asked for."""
    hooks: StageCalls
    name: str
    """Name of the stage, the prefix of its metrics."""
    peers: Peers = ALONE
    """The processes that train together; one alone where no launcher started more."""
    group: str = ""
    """Name that ties the runs of one command together."""
    config_json: Mapping[str, Any] = field(default_factory=dict)
    """The resolved configuration without secrets, as JSON values."""

    @property
    def cfg(self) -> RunConfig:
        """The whole configuration, with the stage's own settings as `cfg.stage`."""
        return self.plan.cfg

    @property
    def codec(self) -> ChatCodec:
        """The checked tokenizer of the starting policy."""
        return self.start.codec

    @property
    def examples(self) -> ExampleMaker:
        """Makes examples of records; those that cannot be trained on go to quarantine."""
        cfg = self.cfg
        return ExampleMaker(
            self.codec, cfg.model.max_length, self.log.drop, self.log.say, cfg.data.token_cache, self.name
        )

    @property
    def key(self) -> str:
        """Key of the artifact."""
        return self.plan.key

    @property
    def plan_json(self) -> dict[str, Any]:
        """Contents of plan.json."""
        return self.chain.record(self.plan, self.log.warnings, len(self.log.dropped)).to_json()

    @property
    def parents(self) -> list[dict[str, str]]:
        """The artifacts that this stage starts from."""
        return self.plan.parents_json()

    def seed_for(self, *parts: object) -> int:
        """A 31-bit seed that depends on the run's seed and `parts` alone."""
        return seed_from(self.cfg.runtime.seed, *parts)

    def records_for(self, schema: str) -> Sequence[Record]:
        """Training records of the same data seen as another schema, e.g. demonstrations beside prompts.

        Raises DataError when the data does not serve that schema.
        """
        return dataset_for(self.cfg, schema, self.parts.registry, self.parts.providers).train

    def records_from(self, path: str, schema: str, key: str) -> list[Record]:
        """Records of a file, folder or hub dataset beside the run's own data; its bad rows go to quarantine.

        key: the setting that names `path`.

        Raises: ConfigError when there is nothing at `path`; DataError when its records do not serve the schema.
        """
        formats = formats_of(self.parts.registry)
        files, _, root = find_files(Path(path).expanduser(), schema, formats, key)
        loaded = load_records(files, max_bad_frac=self.cfg.data.max_bad_frac, root=root, formats=formats, key=key)
        self.log.dropped.extend(loaded.quarantined)
        return as_schema(loaded.records, schema, loaded.dialects.values())


def heldout_prompts(run: StageRun, codec: ChatCodec) -> list[tuple[Record, list[int]]]:
    """Held-out records that completions are generated for, those whose prompt leaves room to answer, with the token ids
    of their prompts."""
    limit = run.cfg.model.max_length - run.cfg.eval.max_new_tokens
    records = run.plan.dataset.heldout_prompts[: run.cfg.eval.max_items]
    encoded = encoded_prompts(codec, records, lambda *_: None)
    return [(record, ids) for record, ids in encoded if len(ids) <= limit]
