"""What every peft method of a plugin must keep."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar

from core.platform.registry import Registry
from core.testing.contracts.base import TrainingContract
from core.testing.run import Lab, Outcome


class PeftMethodContract(TrainingContract):
    """A peft method, in short runs of `sft`."""

    method: ClassVar[str] = ""

    def entry(self) -> Any:
        found = Registry.load().peft_methods.get(self.method)
        assert found is not None, f"no plugin brings the peft method '{self.method}'"
        return found

    def chosen(self) -> list[str]:
        return ["stage=sft", f"peft={self.method}"]

    def prefix(self) -> str:
        return "peft.options"

    def test_every_setting_has_a_docstring(self) -> None:
        """Its settings are those of the method of peft that it stands on, which must have all that it sets."""
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

        spec = self.entry().spec
        configs = {kind.value.lower(): config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
        assert spec.base in configs, f"peft has no method '{spec.base}'"
        known = {field.name for field in dataclasses.fields(configs[spec.base])}
        assert set(spec.options) <= known, sorted(set(spec.options) - known)

    def test_training_starts_from_the_model_that_was_named(self, preftune_lab: Lab, tmp_path: Path) -> None:
        """The fresh adapter changes no log-probability, and something of it trains."""
        import torch

        from core.testing.bench import Bench
        from core.torch_api import pack_texts

        words = [*preftune_lab.words(tmp_path / "runs"), "pipeline.stages=[sft]", "stage=sft", *self.words]
        found = []
        for number, chosen in enumerate((["peft=none"], [f"peft={self.method}"])):
            bench = Bench([*words, *chosen], tmp_path / f"bench-{number}")
            try:
                policy = bench.models.policy
                assert policy is not None and policy.trainable()
                with torch.no_grad():
                    found.append(policy(pack_texts([[5, 6, 7, 8, 9]]))[0])
            finally:
                bench.close()
        assert torch.allclose(found[0], found[1], atol=1e-5)

    def test_its_artifact_is_an_adapter_of_peft(self, straight: Outcome) -> None:
        """Any program with peft loads it; the card says what it is."""
        config = json.loads((straight.artifact / "adapter_config.json").read_text(encoding="utf-8"))
        assert config["peft_type"].lower() == self.entry().spec.base
        assert self.method in (straight.artifact / "README.md").read_text(encoding="utf-8")
        assert straight.result["verified"]
