"""The doctor: reads a data set once, keeps numbers and digests but no texts, and says what is wrong with it and what to do.

`examine` puts together what `lengths`, `duplicates`, `rewards`, `targets` and `content` count in what `formats` reads.
"""
