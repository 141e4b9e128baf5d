"""Footage behind the frames of a store: found, played, and cut into clips."""
