"""Draws completions. `Sampler` is what every backend offers; `generate` is the one on transformers."""

from exoalign.sampling.generate import TransformersSampler
from exoalign.sampling.protocol import Sampler, SamplingSettings

__all__ = ["Sampler", "SamplingSettings", "TransformersSampler"]
