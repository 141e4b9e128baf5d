"""The recipe that trains the shipped `micro` models from nothing."""
