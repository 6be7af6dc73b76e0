"""Tiny random models of many architectures, and the truth about them: one unpadded sequence at a time, in float64.

In float64 a model is exact throughout: what transformers runs in float32 whatever the weights are (the norms, Gemma 2's capped
scores, Cohere's rotation) follows its formula instead.
"""

import types

import torch
from transformers import (
    CONFIG_MAPPING,
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
)
from transformers.masking_utils import eager_mask
from transformers.models.cohere import modeling_cohere

from exoalign import Group
from exoalign.logprobs.engine import shares_prefix

VOCABULARY = 23
LAYERS = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = {**LAYERS, "num_key_value_heads": 2, "head_dim": 8}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
HALF_SLIDING = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
# Windows of 4 tokens and caps of 3 are small enough to matter on sequences of 3 to 14 tokens.
MODELS = {
    "llama": {**GROUPED, "attention_dropout": 0.1},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32},  # absolute positions; dropout 0.1 by default
    "gemma2": {**GROUPED, **HALF_SLIDING, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 3.0},
    "gpt_neox": {**LAYERS, "hidden_dropout": 0.1, "attention_dropout": 0.1},
    "qwen3": GROUPED,
    "mistral": {**GROUPED, "sliding_window": 4},
    "olmo2": GROUPED,
    "phi": {**LAYERS, "partial_rotary_factor": 0.5},  # its head has a bias
    "gemma3_text": {**GROUPED, **HALF_SLIDING},
    "cohere": {**LAYERS, "num_key_value_heads": 2, "logit_scale": 0.25},
    "granite": {
        **LAYERS,
        "num_key_value_heads": 2,
        "embedding_multiplier": 2.0,
        "logits_scaling": 2.0,
        "attention_multiplier": 0.3,
        "residual_multiplier": 0.7,
    },
    "opt": {**LAYERS, "ffn_dim": 48, "word_embed_proj_dim": 16, "max_position_embeddings": 32},
}
# Their grouped matrix products refuse float64.
MIXTURES = {
    "mixtral": {**GROUPED, **EXPERTS, "sliding_window": 4},
    "gpt_oss": {**GROUPED, **EXPERTS, **HALF_SLIDING},  # with attention sinks
    "deepseek_v3": {  # values narrower than keys
        **LAYERS,
        "num_key_value_heads": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 8,
        "moe_intermediate_size": 16,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "first_k_dense_replace": 1,
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 2,
    },
}
# What each is not fit for: packed rows.
UNFIT = {
    "falcon_h1": {  # a state runs through the whole sequence
        **GROUPED,
        "mamba_d_ssm": 32,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_n_groups": 1,
        "mamba_d_state": 8,
        "mamba_chunk_size": 8,
    },
    "mamba": {"hidden_size": 32, "state_size": 8, "num_hidden_layers": 2},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},  # attention of its own, positions in its biases
    "stablelm": {**LAYERS, "num_key_value_heads": 2},  # hands nothing on to its attention
    "qwen2_moe": {  # a window that stands in the mask only
        **GROUPED,
        **HALF_SLIDING,
        "use_sliding_window": True,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    },
    "llama4_text": {**GROUPED, "num_local_experts": 2, "intermediate_size_mlp": 48, "attention_chunk_size": 4},
}
SETTINGS = {**MODELS, **MIXTURES, **UNFIT}
# Two turns, for stems that pay.
A, B = (3, 1, 4, 1, 5, 9, 2, 6), (5, 3, 5, 8, 9, 7, 9, 3)
PAD = 17  # a token like any other: padding must not be seen, whatever fills it


def group_of(prompt, *completions, masks=None):
    """Token ids, and for each completion what counts, as "1101"."""
    masks = None if masks is None else tuple(tuple(bit == "1" for bit in mask) for mask in masks)
    texts = ("x",) * len(completions)
    return Group("p", texts, prompt_ids=prompt, completion_ids=completions, completion_masks=masks)


# Prompts of 1 to 6 tokens; K of 3, 1 and 4; completions of 1 to 8 tokens.
GROUPS = [
    group_of((3, 1, 4, 1, 5, 9), (2, 6, 5), (3,), (5, 8, 9, 7, 9, 3, 2, 3)),
    group_of((7,), (1, 8, 2, 8)),
    group_of((0, 22, 0), (4,), (4, 5), (22, 22, 22), (0, 0, 0, 0, 0)),
]
# The same K. Three turns; the same tokens of which others count; a last token that does not count; a group where all count.
TRAJECTORIES = [
    group_of(
        (3, 1, 4, 1, 5, 9),
        (2, 6, 5, 8, 9, 7, 9, 3),
        (2, 6, 5, 8, 9, 7, 9, 3),
        (5, 8),
        masks=("11000111", "01100001", "10"),
    ),
    GROUPS[1],
    group_of((0, 22, 0), (4,), (4, 5), (22, 22, 22), (0, 0, 0, 0, 0), masks=("1", "01", "101", "01001")),
]


def eager_in_float64(module, query, key, value, attention_mask, scaling, softcap=None, dropout=0.0, **kwargs):
    """Gemma 2's eager attention without its softmax in float32, which has no value for a padding token that sees nothing."""
    key, value = (x.repeat_interleave(module.num_key_value_groups, 1) for x in (key, value))
    scores = torch.tanh(query @ key.transpose(2, 3) * scaling / softcap) * softcap
    weights = torch.softmax(scores if attention_mask is None else scores + attention_mask, -1)
    return (weights @ value).transpose(1, 2), weights


AttentionInterface.register("eager_in_float64", eager_in_float64)
AttentionMaskInterface.register("eager_in_float64", eager_mask)


def rms_norm(self, x):
    root = torch.rsqrt((x * x).mean(-1, keepdim=True) + (self.eps if hasattr(self, "eps") else self.variance_epsilon))
    return x * root * (1 + self.weight if type(self).__name__.startswith("Gemma") else self.weight)


def layer_norm(self, x):
    variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + self.variance_epsilon) * self.weight


def rotate(q, k, cos, sin):
    """Cohere's rotation of neighbouring pairs, in the type of its arguments."""

    def turned(x):
        return torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)

    return tuple(x * cos[:, None] + turned(x) * sin[:, None] for x in (q, k))


def rotate_in_float32_at_least(q, k, cos, sin, _original=modeling_cohere.apply_rotary_pos_emb):
    return (rotate if q.dtype == torch.float64 else _original)(q, k, cos, sin)


modeling_cohere.apply_rotary_pos_emb = rotate_in_float32_at_least


def in_float64(model):
    """Set the norms that are written in float32 to their formula."""
    for module in model.modules():
        name = type(module).__name__
        if name.endswith("RMSNorm"):
            module.forward = types.MethodType(rms_norm, module)
        elif name == "CohereLayerNorm":
            module.forward = types.MethodType(layer_norm, module)
    return model


def build(kind, *, seed=0, dtype=torch.float64, attention=None, **settings):
    """A random model in eval mode, with weights so large that each of its parts matters."""
    special = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    # norms, biases and sinks are drawn too: as zeros and ones they would hide whether they are used
    random = {"vocab_size": VOCABULARY, "initializer_range": 0.3, **special, **SETTINGS[kind], **settings}
    torch.manual_seed(seed)
    if attention is None and kind == "gemma2" and dtype == torch.float64:
        attention = "eager_in_float64"
    given = {"attn_implementation": attention} if attention else {}
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**random), **given)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1 and kind not in UNFIT:
                weight.add_(0.2 * torch.randn_like(weight)) if "sinks" not in name else weight.copy_(torch.randn(4))
    model = model.to(dtype).eval()
    return in_float64(model) if dtype == torch.float64 else model


def build_fast(kind, **arguments):
    """As `build`, on the attention that a user's model has. Gemma 2 is on eager: sdpa cannot cap scores."""
    if kind == "gemma2":
        arguments["attention"] = "eager"
    return build(kind, **arguments)


def fast(kind, **arguments):
    """As `build_fast`, and its log-probs go by packed rows."""
    model = build_fast(kind, **arguments)
    assert shares_prefix(model)
    return model


def encoder_decoder():
    config = CONFIG_MAPPING["t5"](vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    return AutoModelForSeq2SeqLM.from_config(config).eval()


def sequence_logprob(model, prompt, completion, temperature=1.0, mask=None):
    """sum_t log softmax(logits_t / T)[y_t] of one sequence without padding, from the logits at every place, where t counts."""
    logits = model(input_ids=torch.tensor([[*prompt, *completion]]), use_cache=False).logits[0]
    log_p = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature, -1)
    # the logits at place j predict the token at place j + 1
    counted = [t for t in range(len(completion)) if mask is None or mask[t]]
    return sum(log_p[len(prompt) + t - 1, completion[t]] for t in counted)


def one_by_one(model, groups, temperature=1.0):
    """[B, K] from sequence_logprob, 0 where a group has fewer than K completions."""
    k = max(group.k for group in groups)
    rows = []
    for group in groups:
        masks = group.completion_masks or [None] * group.k
        values = [
            sequence_logprob(model, group.prompt_ids, ids, temperature, mask)
            for ids, mask in zip(group.completion_ids, masks, strict=True)
        ]
        rows.append(torch.stack([*values, *[torch.zeros_like(values[0])] * (k - group.k)]))
    return torch.stack(rows)


def gradients(model, values):
    """Of a sum in which every completion has another weight, so that none can stand in for another."""
    weights = torch.linspace(0.5, 2.0, values.numel(), dtype=values.dtype).view_as(values)
    model.zero_grad()
    (values * weights).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(ours, truth, rtol=1e-9):
    """Equal up to rtol of the whole tensor's size."""
    assert ours.shape == truth.shape
    assert (ours - truth).norm() <= rtol * truth.norm()


def assert_same_gradients(ours, truth, rtol=1e-9):
    """As assert_same for each tensor by itself; one that is zero but for rounding is held against the largest."""
    assert ours.keys() == truth.keys()
    largest = max(gradient.norm() for gradient in truth.values())
    for name, gradient in ours.items():
        assert gradient.shape == truth[name].shape
        assert (gradient - truth[name]).norm() <= rtol * max(truth[name].norm(), 1e-3 * largest), name
