"""Tiny random models of many families, made from transformers configs: what the forward pass is tried on.

Norms, biases, sinks and the like are moved away from their start values, so that nothing is right by standing still.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

VOCABULARY = 61
"""Ids 0 to 3 are left to special tokens."""

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128,
    "initializer_range": 0.2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 3,
    "unk_token_id": 3, "attention_dropout": 0.0, "hidden_dropout": 0.0, "moe_intermediate_size": 24,
    "num_experts_per_tok": 2, "num_local_experts": 4, "num_experts": 4, "n_routed_experts": 4,
    # GPT-2's names
    "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "n_inner": 48, "n_ctx": 128,
    "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "rotary_dim": 4,
}  # fmt: skip
"""Settings that a family takes where its config has them."""

_MLA = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6,
    "num_key_value_heads": 4, "head_dim": 4,
}  # fmt: skip
_GROUPED = {**_MLA, "n_group": 2, "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1}
_MAMBA1 = {"state_size": 4, "time_step_rank": 4, "conv_kernel": 4, "expand": 2}
_MAMBA2 = {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 8, "expand": 2}
_DELTA = {
    "num_hidden_layers": 4, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "linear_conv_kernel_dim": 4, "shared_expert_intermediate_size": 24,
}  # fmt: skip
_SLIDING = {"sliding_window": 12, "layer_types": ["sliding_attention", "full_attention"]}
_ALL_SLIDING = {"sliding_window": 12, "layer_types": ["sliding_attention"] * 2}
_PHI_MOE = {"router_jitter_noise": 0.0, "input_jitter_noise": 0.0}
_YARN = {
    "max_position_embeddings": 512,
    "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0,
                        "original_max_position_embeddings": 128},
}  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """A tiny model of a family.

    family: transformers' model type. settings: of its config. name: of the variant. encoder: is none of the models
    that predict the next token, and must be refused.
    """

    family: str
    settings: dict[str, Any] = field(default_factory=dict)
    kind: str = ""

    @property
    def name(self) -> str:
        """Family and kind."""
        return f"{self.family} {self.kind}".strip()

    def config(self) -> Any:
        """Its transformers config."""
        from transformers import AutoConfig

        kind = type(AutoConfig.for_model(self.family))
        known = kind()
        fixed = {name for name in dir(kind) if isinstance(getattr(kind, name), property)}
        sizes = {name: value for name, value in _SIZES.items() if hasattr(known, name) and name not in fixed}
        return kind(**{**sizes, **self.settings})

    def model(self, seed: int = 0, *, scorer: bool = False) -> Any:
        """The model in fp32 and eval mode: a causal language model, or with `scorer` its body and one score a token."""
        from transformers import AutoModelForCausalLM

        from core.models.heads import score_class

        config = self.config()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if scorer:
                config.num_labels = 1
                model = score_class(config).from_config(config)
            else:
                model = AutoModelForCausalLM.from_config(config)
            perturb(model)
        return model.float().eval()


def perturb(model: torch.nn.Module) -> None:
    """Move every parameter that starts as a constant (norms, biases, sinks, gates) away from it."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() and (parameter.dim() < 2 or parameter.std() == 0):
                parameter.add_(0.3 * torch.randn_like(parameter))


def _of(family: str, kind: str = "", **settings: Any) -> Variant:
    return Variant(family, settings, kind)


VARIANTS: tuple[Variant, ...] = (
    _of("afmoe"),
    _of("apertus"),
    _of("arcee"),
    _of("bamba", mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8, mamba_n_groups=2, mamba_chunk_size=8,
        attn_layer_indices=[1], num_hidden_layers=3),
    _of("biogpt"),
    _of("bitnet"),
    _of("bloom"),
    _of("codegen"),
    _of("cohere"),
    _of("cohere", "query and key norm", use_qk_norm=True, logit_scale=0.5),
    _of("cohere2", **_SLIDING),
    _of("ctrl", dff=48),
    _of("cwm", **_SLIDING),
    _of("dbrx", d_model=32, n_heads=4, n_layers=2, max_seq_len=128,
        attn_config={"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        ffn_config={"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32}),
    _of("deepseek_v2", **_GROUPED),
    _of("deepseek_v2", "no query rank", **{**_GROUPED, "q_lora_rank": None}),
    _of("deepseek_v3", **_GROUPED),
    _of("diffllama"),
    _of("doge", num_experts=4, keep_window_size=128),
    _of("dots1", **{**_GROUPED, "head_dim": 8}),
    _of("ernie4_5"),
    _of("ernie4_5_moe", moe_num_experts=4, moe_k=2, moe_intermediate_size=24, moe_num_shared_experts=1,
        moe_layer_start_index=1, moe_layer_interval=1),
    _of("exaone4", num_hidden_layers=4, sliding_window=12, sliding_window_pattern=4),
    _of("falcon", "alibi", alibi=True, new_decoder_architecture=False, multi_query=True),
    _of("falcon", "rotary", alibi=False, new_decoder_architecture=True, num_kv_heads=2, bias=True),
    _of("falcon", "sequential", alibi=False, new_decoder_architecture=False, multi_query=False, parallel_attn=False),
    _of("falcon_h1", mamba_d_ssm=64, mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8, mamba_n_groups=2,
        mamba_chunk_size=8, lm_head_multiplier=0.5, embedding_multiplier=2.0, key_multiplier=0.7),
    _of("falcon_mamba", **_MAMBA1),
    _of("flex_olmo"),
    _of("gemma"),
    _of("gemma2", **_SLIDING),
    _of("gemma2", "no caps", **_SLIDING, attn_logit_softcapping=None, final_logit_softcapping=None),
    _of("gemma3_text", **_SLIDING),
    _of("gemma3_text", "wide window", sliding_window=512),
    _of("glm"),
    _of("glm4"),
    _of("glm4_moe", **{**_GROUPED, "head_dim": 8}),
    _of("gpt2"),
    _of("gpt2", "scaled by layer", scale_attn_by_inverse_layer_idx=True, reorder_and_upcast_attn=True),
    _of("gpt_bigcode", "multi-query", multi_query=True),
    _of("gpt_bigcode", "all heads", multi_query=False),
    _of("gpt_neo", hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]],
        window_size=12),
    _of("gpt_neo", "global", hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global"], 2]]),
    _of("gpt_neox", rotary_pct=0.5),
    _of("gpt_neox", "sequential", use_parallel_residual=False),
    _of("gpt_neox_japanese", intermediate_multiple_size=2),
    _of("gpt_oss", **_SLIDING),
    _of("gpt_oss", "wide window", sliding_window=128),
    _of("gptj"),
    _of("granite", attention_multiplier=0.2, logits_scaling=3.0, residual_multiplier=0.5, embedding_multiplier=2.0),
    _of("granite_swa", **_SLIDING),
    _of("granitemoe", logits_scaling=3.0, attention_multiplier=0.2),
    _of("granitemoehybrid", "mamba", layer_types=["mamba", "attention"], mamba_n_heads=8, mamba_d_head=8,
        mamba_d_state=8, mamba_n_groups=2, mamba_chunk_size=8, shared_intermediate_size=24),
    _of("granitemoehybrid", "attention", layer_types=["attention", "attention"], shared_intermediate_size=24,
        mamba_n_heads=8, mamba_d_head=8),
    _of("granitemoeshared", shared_intermediate_size=24),
    _of("helium"),
    _of("hunyuan_v1_dense"),
    _of("hunyuan_v1_moe", moe_topk=2),
    _of("jamba", num_hidden_layers=4, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2,
        mamba_d_state=4, mamba_dt_rank=4, use_mamba_kernels=False),
    _of("jetmoe", kv_channels=8, num_key_value_heads=4),
    _of("lfm2", layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False),
    _of("lfm2_moe", layer_types=["conv", "full_attention"], num_dense_layers=1),
    _of("llama"),
    _of("llama", "biases", attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    _of("llama", "all heads", num_key_value_heads=4),
    _of("llama", "yarn", **_YARN),
    _of("llama", "dynamic positions",
        rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}),
    _of("llama4_text", attention_chunk_size=12, intermediate_size_mlp=48, num_hidden_layers=4,
        attn_temperature_tuning=True, floor_scale=8),
    _of("llama4_text", "wide chunks", attention_chunk_size=128, intermediate_size_mlp=48),
    _of("mamba", **_MAMBA1),
    _of("mamba2", **_MAMBA2),
    _of("minimax", num_hidden_layers=2, layer_types=["linear_attention", "full_attention"], block_size=8),
    _of("ministral", **_SLIDING),
    _of("mistral", sliding_window=12),
    _of("mistral", "no window", sliding_window=None),
    _of("mixtral"),
    _of("mixtral", "window", sliding_window=12),
    _of("modernbert-decoder", global_attn_every_n_layers=2, local_attention=12),
    _of("mpt", d_model=32, n_heads=4, n_layers=2, expansion_ratio=2, max_seq_len=128),
    _of("nanochat"),
    _of("nemotron"),
    _of("nemotron_h", num_hidden_layers=4, layers_block_type=["mamba", "attention", "moe", "mamba"],
        ssm_state_size=8, mamba_num_heads=8, mamba_head_dim=8, n_groups=2, chunk_size=8,
        moe_shared_expert_intermediate_size=24, n_group=1, topk_group=1),
    _of("olmo"),
    _of("olmo", "clipped", clip_qkv=0.5),
    _of("olmo2"),
    _of("olmo3", **_SLIDING),
    _of("olmoe"),
    _of("openai-gpt"),
    _of("opt", ffn_dim=48, word_embed_proj_dim=32),
    _of("opt", "post-norm", ffn_dim=48, word_embed_proj_dim=16, do_layer_norm_before=False),
    _of("persimmon"),
    _of("phi", partial_rotary_factor=0.5),
    _of("phi", "query and key norm", qk_layernorm=True),
    _of("phi3", sliding_window=None),
    _of("phi3", "window", sliding_window=12),
    _of("phi3", "longrope", sliding_window=None, original_max_position_embeddings=12,
        rope_parameters={"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0, 1.2, 1.4, 1.6],
                         "long_factor": [2.0, 3.0, 4.0, 5.0], "original_max_position_embeddings": 12}),
    _of("phimoe", sliding_window=12, **_PHI_MOE),
    _of("phimoe", "no window", sliding_window=None, lm_head_bias=True, attention_bias=True, **_PHI_MOE),
    _of("qwen2"),
    _of("qwen2", "window", use_sliding_window=True, max_window_layers=1, sliding_window=12),
    _of("qwen2_moe", shared_expert_intermediate_size=24),
    _of("qwen2_moe", "window", shared_expert_intermediate_size=24, use_sliding_window=True, max_window_layers=0,
        sliding_window=12),
    _of("qwen3"),
    _of("qwen3_5_text", **_DELTA),
    _of("qwen3_moe"),
    _of("qwen3_next", **_DELTA),
    _of("recurrent_gemma", num_hidden_layers=3, lru_width=32, attention_window_size=12),
    _of("rwkv", attention_hidden_size=32),
    _of("seed_oss"),
    _of("smollm3", no_rope_layers=[1, 0]),
    _of("solar_open"),
    _of("stablelm", partial_rotary_factor=0.5),
    _of("stablelm", "parallel", use_parallel_residual=True, qk_layernorm=True, use_qkv_bias=True),
    _of("starcoder2", sliding_window=None),
    _of("starcoder2", "window", sliding_window=12),
    _of("vaultgemma", **_SLIDING),
    _of("xglm", d_model=32, num_layers=2, attention_heads=4, ffn_dim=48),
    _of("youtu", **_MLA),
    _of("zamba", num_hidden_layers=9, mamba_d_state=4, mamba_dt_rank=4, n_mamba_heads=2, use_mamba_kernels=False,
        attention_head_dim=16, attention_hidden_size=64),
    _of("zamba2", num_hidden_layers=4, mamba_d_state=8, n_mamba_heads=8, mamba_headdim=8, mamba_ngroups=2,
        chunk_size=8, layers_block_type=["linear_attention", "hybrid"] * 2, use_mamba_kernels=False, adapter_rank=4),
)  # fmt: skip
"""Causal language models, each with a shape of its own."""

REFUSED: tuple[Variant, ...] = (
    _of("bert"),
    _of("roberta"),
    _of("electra"),
    _of("camembert"),
    _of("xlm-roberta"),
    _of("rembert"),
    _of("roformer", "decoder", is_decoder=True, embedding_size=32),
    _of("bart", d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=48, decoder_ffn_dim=48),
    _of("pegasus", d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48),
)  # fmt: skip
"""What transformers builds as a language model though it sees later tokens (in RoFormer's case even as a decoder), or
has an encoder."""
