"""Evaluation: `compare` on fresh samples of both models, `heldout` on completions that exist already."""
