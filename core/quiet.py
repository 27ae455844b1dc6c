"""Third-party libraries say only what matters."""

from __future__ import annotations

import logging
import warnings


def hush() -> None:
    """No progress bars and no chatter of libraries; errors still come through."""
    warnings.filterwarnings("ignore")
    for name in ("transformers", "accelerate", "peft", "bitsandbytes", "torch", "datasets", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from transformers.utils import logging as hf_logging

    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
