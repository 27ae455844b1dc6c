"""A is orthogonal in the artifact, and the contract of every peft method."""

import numpy as np
from safetensors.numpy import load_file

from core.testing.contracts import PeftMethodContract


class TestAsymmetry(PeftMethodContract):
    method = "asym_lora"

    def test_a_is_orthogonal_after_training(self, straight):
        weights = load_file(straight.artifact / "adapter_model.safetensors")
        for name, value in weights.items():
            if ".lora_A." in name:
                assert np.allclose(value @ value.T, np.eye(len(value)), atol=1e-5), name
