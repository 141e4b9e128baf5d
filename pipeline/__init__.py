"""Entry points of Sightline: the command line, questions, the model service, backfill, training and benchmarks."""
