"""Third-party libraries say only what matters."""

from __future__ import annotations

import logging
import os
import warnings

_ENVIRONMENT = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}


def set_environment() -> None:
    """Set what libraries read from the environment when they are imported; what the user set stays.

    Threads that wait at a barrier spin for a while, which saves a fifth of a step on free cores. On cores that others
    use too they starve each other, and a step takes up to ten times as long: there they sleep at once.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if os.getloadavg()[0] >= (os.cpu_count() or 1):
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def hush() -> None:
    """No progress bars and no chatter of libraries; errors still come through."""
    warnings.filterwarnings("ignore")
    for name in ("transformers", "accelerate", "peft", "bitsandbytes", "torch", "datasets", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from transformers.utils import logging as hf_logging

    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
