"""The rendered world: scenes, drawing, questions, vocabulary."""
