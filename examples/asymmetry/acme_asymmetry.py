"""A peft method: LoRA with a random orthogonal A that stays (Zhu et al. 2024, arXiv:2402.16842)."""

from core.api import PeftMethodSpec, hookimpl

PREFTUNE_API = 2


def shape(module, config):
    import torch

    for name, parameter in module.named_parameters():
        if ".lora_A." in name:
            with torch.no_grad():
                start = torch.empty(parameter.shape, dtype=torch.float32, device=parameter.device)
                parameter.copy_(torch.nn.init.orthogonal_(start))
            parameter.requires_grad_(False)


@hookimpl
def register_peft_methods():
    summary = "LoRA with a frozen orthogonal A"
    return [PeftMethodSpec("asym_lora", "lora", "acme_asymmetry:shape", summary, options={"r": 16, "lora_alpha": 32})]
