"""The `sightline` command line, one module a group of commands."""
