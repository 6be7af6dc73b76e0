"""From files to groups of tokens: `sources` finds rows (`strict_json`, `tabular`, `hosted`), `kinds`, `shapes` and
`conversations` know what a row means, `formats` reads groups, prompts and texts, `set_aside` counts the rest, `hh` splits
transcripts, `tokenize` makes ids once, `collate` batches, `table` keeps groups in Parquet."""
