"""Answers of the model service and the desk: what a finished one consists of, its formats, and its replies."""
