"""Scores completions: `functions` holds the reward functions that ship and the protocol for one's own."""
