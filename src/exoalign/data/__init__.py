"""From files to groups of tokens: `formats` reads rows, `hh` splits transcripts, `tokenize` makes ids once, `collate` batches,
`table` keeps groups in Parquet."""
