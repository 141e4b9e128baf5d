"""Commands of the evaluation: `sightline eval …`."""
