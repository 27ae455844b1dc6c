"""What the hooks of one stage work with: config, plan, folder, models, engine, scorers, and ways to tell."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.console import Console
from core.data.draws import seed_from
from core.data.files import find_files
from core.data.formats import formats_of
from core.data.loading import load_records
from core.data.records import BadRow, Record
from core.data.views import as_schema
from core.files import disk_guard
from core.jsonl import MetricsWriter
from core.planning.ledger import Ledger
from core.planning.named_data import dataset_for
from core.planning.plan import Plan, StagePlan
from core.planning.sources import artifact_folder, resolve_source
from core.platform.observers import Observers
from core.platform.providers import Providers
from core.platform.registry import Registry
from core.settings.convert import to_plain
from core.settings.schema import Device, Dtype, RunConfig
from core.stopwatch import Stopwatch
from core.tokens.codec import ChatCodec, load_codec
from core.tokens.examples import encoded_prompts
from core.training.on_demand import ChosenParts
from core.training.peers import ALONE, Peers
from core.types import ScoreRequest

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

    from core.models.roles import Models


class StageRun(ChosenParts):
    """What the hooks of one stage work with.

    Config and plan, the run folder, device and number format, the tokenizer, models by role once they stand, rollout
    engine and scorers on demand, and the ways to say, warn and observe.
    """

    def __init__(
        self,
        plan: StagePlan,
        whole: Plan,
        registry: Registry,
        console: Console,
        group: str,
        config_json: dict[str, Any],
        ledger: Ledger,
        providers: Providers,
        peers: Peers = ALONE,
    ) -> None:
        assert plan.run_dir is not None
        super().__init__()
        self.peers: Peers = peers
        """The processes that train together; one alone where no launcher started more."""
        self.plan, self.whole, self.registry, self.console, self.group = plan, whole, registry, console, group
        self.ledger, self.providers = ledger, providers
        self.cfg: RunConfig = plan.cfg
        self.shared_dir: Path = plan.run_dir
        """The run folder."""
        self.dir: Path = (
            plan.run_dir if peers.first else Path(tempfile.mkdtemp(prefix=f"preftune-process{peers.rank}-"))
        )
        """Where this process writes: the run folder; a folder that goes away, of a process that is not the first."""
        self.stage_name = plan.stage
        self.hook = registry.manager.hook
        self.observers = Observers(registry.manager if peers.first else None, self.warn)
        self.records = MetricsWriter(self.dir)
        self.models: Models | None = None
        self.total_steps = 0
        self.step = 0
        self.stop_reason = ""
        """Set by a stage to end the run after this step, e.g. when the KL grew too large."""
        self.skip_updates = False
        """Set by a stage to end this step's updates early."""
        self.policy_version = 0
        self.sync_difference = 0.0
        """Mean log-probability difference in nats between engine and trainer at the last sync."""
        self.resumed_at: list[int] = []
        """Steps that were done when the run was resumed, one number for each time."""
        self._watch = Stopwatch()
        self.seconds = self._watch.seconds
        """Wall-clock seconds by part of the run."""
        self.first_eval: dict[str, Any] | None = None
        self.last_eval: dict[str, Any] | None = None
        self.eval_items: list[float | None] = []
        """Score of each held-out item of the last evaluation."""
        self.eval_requests: list[ScoreRequest] = []
        """What the evaluation under way had scored; `eval.metrics` are taken of it."""
        self.metric_names: list[str] = []
        """Names that `eval.metrics` gave at the last evaluation."""
        self.eval_metric = ""
        """Name of the headline metric where the stage has its own."""
        self.retention: list[dict[str, Any]] = []
        """What the last measurement says of general ability, one row a measure; see core.training.retention."""
        self._eval_rows: list[dict[str, Any]] = []
        self.facts: dict[str, Any] = {}
        """What the stage has to tell in result.json beside the common fields; JSON values."""
        self.dropped: list[BadRow] = list(plan.dataset.quarantined)
        self.config_json = {**config_json, "stage": to_plain(plan.cfg.stage)}

    # -- surroundings ------------------------------------------------------------------------------------------------

    @property
    def key(self) -> str:
        """Key of the artifact."""
        return self.plan.key

    @property
    def plan_json(self) -> dict[str, Any]:
        """Contents of plan.json."""
        return self.whole.to_json(self.plan)

    @property
    def parents(self) -> list[dict[str, str]]:
        """The artifacts that this stage starts from."""
        return [
            {"stage": parent.stage, "key": parent.key, "run_dir": str(parent.run_dir)}
            for parent in self.plan.parents.values()
        ]

    @cached_property
    def accelerator(self) -> Accelerator:
        """accelerate's view of the processes and devices."""
        from accelerate import Accelerator

        cpu = self.cfg.runtime.device is Device.cpu or not _has_cuda()
        return Accelerator(cpu=cpu, mixed_precision="no")

    @cached_property
    def device(self) -> torch.device:
        """Where the models live."""
        import torch

        device = self.accelerator.device
        # Under a launcher accelerate says cpu:0, which safetensors does not know.
        return torch.device("cpu") if device.type == "cpu" else device

    @cached_property
    def dtype(self) -> torch.dtype:
        """Number format of weights in forward and backward."""
        import torch

        return torch.float32 if self.cfg.runtime.dtype is Dtype.fp32 else torch.bfloat16

    @cached_property
    def codec(self) -> ChatCodec:
        """The checked tokenizer of the starting policy."""
        codec = load_codec(self.start_folder, self.cfg.model)
        for note in codec.notes:
            self.warn(note)
        return codec

    @cached_property
    def start_folder(self) -> Path:
        """Folder of the weights that the stage starts from."""
        parent = self.plan.parents.get("policy")
        if parent is None:
            return resolve_source(self.cfg.model)
        assert parent.run_dir is not None
        return parent.run_dir / "artifact"

    @cached_property
    def engine_folder(self) -> Path:
        """A folder from which a rollout engine can load a plain model: the starting weights, adapters merged."""
        folder = self.start_folder
        if not (folder / "adapter_config.json").is_file():
            return folder
        merged = self.dir / "engine"
        if not merged.is_dir():
            from core.artifacts.artifact import save_plain

            save_plain(self, merged)
        return merged

    def start_from(self, folder: Path) -> None:
        """Start from other weights than planned, e.g. the same model with more tokens. To be called in `build_models`,
        before any is loaded."""
        self.start_folder = folder
        vars(self).pop("engine_folder", None)

    @property
    def max_sequence_tokens(self) -> int:
        """Longest prompt and completion together, in tokens."""
        return self.cfg.model.max_length

    def reward_model_folder(self) -> Path | None:
        """Folder of the learned reward model, or None when the run has none."""
        parent = self.plan.parents.get("reward_model")
        if parent is not None and parent.run_dir is not None:
            return parent.run_dir / "artifact"
        source = getattr(self.cfg.reward, "source", None)
        return artifact_folder(Path(source).expanduser()) if source and self.plan.reward else None

    def seed_for(self, *parts: object) -> int:
        """A 31-bit seed that depends on the run's seed and `parts` alone."""
        return seed_from(self.cfg.runtime.seed, *parts)

    # -- saying ------------------------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """A line for the terminal and log.txt."""
        self.console.line(text)
        self.log(text)

    def warn(self, text: str) -> None:
        """A warning for the terminal, log.txt and the report."""
        if text not in self.plan.warnings:
            self.plan.warnings.append(text)
            self.console.warn(text)
        self.log(f"warning: {text}")

    def log(self, text: str) -> None:
        """A line for log.txt alone."""
        path = self.dir / "log.txt"
        with disk_guard(path), path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{time.strftime('%H:%M:%S')} {text}\n")

    def timed(self, part: str) -> AbstractContextManager[None]:
        """Add the block's wall-clock time to `seconds[part]`, less what parts inside it take for themselves."""
        return self._watch.counted(part)

    def seconds_by_plugin(self) -> dict[str, float]:
        """Wall-clock seconds that each plugin took as provider and as observer, the longest first."""
        total: dict[str, float] = defaultdict(float)
        for part in (self.providers.seconds, self.observers.seconds_by_plugin):
            for name, value in part.items():
                total[name] += value
        return {name: round(value, 3) for name, value in sorted(total.items(), key=lambda item: -item[1])}

    # -- data --------------------------------------------------------------------------------------------------------

    def drop(self, record: Record, reason: str) -> None:
        """Put a record that cannot be trained on into quarantine."""
        meta = record.meta
        text = record.prompt[-1].content if record.prompt else record.text or ""
        self.dropped.append(BadRow(str(meta.get("file", "")), int(meta.get("line", 0)), reason, text[:200]))

    def eval_records(self) -> list[Record]:
        """Held-out records that completions are generated for: those whose prompt leaves room to answer."""
        limit = self.cfg.model.max_length - self.cfg.eval.max_new_tokens
        records = self.plan.dataset.heldout_prompts[: self.cfg.eval.max_items]
        encoded = encoded_prompts(self.codec, records, lambda *_: None)
        return [record for record, ids in encoded if len(ids) <= limit]

    def records_for(self, schema: str) -> Sequence[Record]:
        """Training records of the same data seen as another schema, e.g. demonstrations beside prompts.

        Raises DataError when the data does not serve that schema.
        """
        return dataset_for(self.cfg, schema, self.registry, self.providers).train

    def records_from(self, path: str, schema: str) -> list[Record]:
        """Records of a file, folder or hub dataset beside the run's own data; its bad rows go to quarantine.

        Raises: ConfigError when there is nothing at `path`; DataError when its records do not serve the schema.
        """
        formats = formats_of(self.registry)
        files, _, root = find_files(Path(path).expanduser(), schema, formats)
        loaded = load_records(files, max_bad_frac=self.cfg.data.max_bad_frac, root=root, formats=formats)
        self.dropped += loaded.quarantined
        return as_schema(loaded.records, schema, loaded.dialects.values())

    # -- observing ---------------------------------------------------------------------------------------------------

    def observe_step(self, step: int, tokens: int, seconds: float, metrics: dict[str, float]) -> None:
        """Record a step's metrics under the stage's prefix."""
        self.policy_version = step
        named = {f"{self.stage_name}/{name}": value for name, value in metrics.items()}
        self.records.metrics(step, named, tokens, seconds)
        self.observers.on_step_end(self, step, named)
        self.console.step(step, self.total_steps, metrics)

    def observe_facts(self, facts: dict[str, float]) -> None:
        """Record numbers of the examples that were made: in result.json, and as metrics `data/…` of step 0."""
        self.facts |= facts
        if self.plan.state != "resume":
            named = {f"data/{name}": value for name, value in facts.items()}
            self.records.metrics(0, named)
            self.observers.on_step_end(self, 0, named)

    def observe_eval(self, step: int, tokens: int, seconds: float, metrics: dict[str, float]) -> None:
        """Record a held-out evaluation; the first and the last one make the headline."""
        held = {**metrics, "items": list(self.eval_items)}
        when = "before" if self.first_eval is None else "after" if step == self.step == self.total_steps else "step"
        if self.first_eval is None:
            self.first_eval = held
        self.last_eval = held
        named = {f"eval/{name}": value for name, value in metrics.items()}
        self.records.metrics(step, named, tokens, seconds)
        if self._eval_rows:
            self.observe_samples(step, when, self._eval_rows)
            self._eval_rows = []
        self.observers.on_eval_end(self, step, named)
        self.console.evaluation(step, metrics)
        self.eval_items = []

    def eval_samples(self, rows: list[dict[str, Any]]) -> None:
        """Rows that the evaluation under way wants to show."""
        self._eval_rows = rows

    def observe_samples(self, step: int, when: str, rows: list[dict[str, Any]]) -> None:
        """Record sample completions."""
        self.records.samples(when, step, rows)
        self.observers.on_samples(self, step, [{"when": when, "step": step, **row} for row in rows])

    def truncate_records(self, step: int, counts: dict[str, int] | None = None) -> None:
        """Forget what was recorded after `step`, and beyond `counts` rows of each file: a resumed run will write it
        again. -1 forgets everything."""
        self.records.truncate_after(step, counts)

    def close(self) -> None:
        """Give engines, workers and models back."""
        self.close_engines()
        self.close_scorers()
        self.records.close()
        self.console.end()
        self.models = None
        if not self.peers.first:
            shutil.rmtree(self.dir, ignore_errors=True)
        if "accelerator" in vars(self):
            self.accelerator.free_memory()


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()
