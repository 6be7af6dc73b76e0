"""Training: `group_trainer` trains on groups in passes, `align` by the objectives; `arguments` their settings, `reference` the
reference log-probs, `diagnostics` what is logged and warned of."""
