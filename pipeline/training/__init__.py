"""`sightline train run`: plan, data, model and loop put together."""
