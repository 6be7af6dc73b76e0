"""Log-probabilities of completions. `rows` is the slow and obvious way, which faster ones are judged by."""
