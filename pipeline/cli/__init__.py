"""The `sightline` command line: `main` holds the lazy group, every other module a few commands."""
