"""Draws completions. `Sampler` is what every backend offers; `generate` is the one on transformers, `vllm` the one on vLLM."""

from exoalign.sampling.generate import TransformersSampler
from exoalign.sampling.protocol import Draw, Sampler, SamplingSettings

__all__ = ["Draw", "Sampler", "SamplingSettings", "TransformersSampler"]
