"""Alignment: `align` holds the trainer, `arguments` its settings, `reference` the reference log-probs, `diagnostics` what is
logged and warned of."""
