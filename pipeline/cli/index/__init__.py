"""The group `sightline index`."""
