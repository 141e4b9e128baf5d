"""Adapters of the published benchmarks: their files, prompts and scores. Data sets are the user's; none is shipped."""
