"""`python -m pipeline.cli`: the `sightline` command."""

from pipeline.cli.main import run

if __name__ == "__main__":
    run()
