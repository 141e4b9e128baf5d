"""lmms-eval's own scoring of exported answers: `python -m tests.support.lmms_tasks`, jobs on standard input.

A job is {task, docs, logs}: a task of lmms-eval, rows of its data set, and the folder of the exported logs. Printed is
a list of {metric: value}. What runs is lmms-eval's code, unchanged: its YAML loader, its model `from_log`, which replays
the log, and the `process_results` and aggregation that the task's YAML names, called as its evaluator calls them.
What does not run is its download of data sets and its reading of videos. The packages for these are not among those of
the tests, so that modules without content stand for them; using one of them is an error.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import inspect
import json
import sys
import types
from pathlib import Path
from typing import Any

_NOT_CALLED = ("cv2", "datasets", "decord", "evaluate")


class _Empty(types.ModuleType):
    """A module of a package that is not there; its names are classes that cannot be made."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def refuse(*args: Any, **more: Any) -> None:
            """Fail."""
            raise RuntimeError(f"{self.__name__}.{name} is not there; scoring must not need it")

        return type(name, (), {"__init__": refuse})


def _prepare() -> Path:
    """Stand in for packages that scoring does not call, and for the start of `lmms_eval.tasks`, which lists all tasks.

    Returns:
        The folder of the tasks.
    """
    for name in _NOT_CALLED:
        if importlib.util.find_spec(name) is None:
            sys.modules[name] = empty = _Empty(name)
            empty.__spec__ = importlib.machinery.ModuleSpec(name, None)
    folder = Path(str(importlib.import_module("lmms_eval").__file__)).parent / "tasks"
    tasks = types.ModuleType("lmms_eval.tasks")
    tasks.__path__ = [str(folder)]
    sys.modules["lmms_eval.tasks"] = tasks
    return folder


def _config(folder: Path, task: str) -> dict[str, Any]:
    """The YAML of a task, with its functions."""
    load = importlib.import_module("lmms_eval.utils").load_yaml_config
    for path in sorted(folder.glob("*/*.yaml")):
        names = [
            line.split(":", 1)[1].strip().strip('"') for line in path.read_text().splitlines() if line[:5] == "task:"
        ]
        if names == [task]:
            return dict(load(yaml_path=str(path)))
    raise SystemExit(f"lmms-eval has no task {task}")


def _scores(config: dict[str, Any], docs: list[dict[str, Any]], replies: list[str]) -> dict[str, float]:
    """Every metric of a task, as the evaluator gathers and aggregates them."""
    found: dict[str, list[Any]] = {}
    for doc, reply in zip(docs, replies, strict=True):
        for metric, value in config["process_results"](doc, [reply]).items():
            found.setdefault(metric, []).append(value)
    values = {}
    for entry in config["metric_list"]:
        items, aggregate = found[entry["metric"]], entry["aggregation"]
        if aggregate == "mean":
            values[entry["metric"]] = sum(items) / len(items)
        elif "args" in inspect.signature(aggregate).parameters:
            values[entry["metric"]] = aggregate(items, args=None)
        else:
            values[entry["metric"]] = aggregate(items)
    return values


def main() -> None:
    """Score the jobs of standard input."""
    folder, results = _prepare(), []
    from_log = importlib.import_module("lmms_eval.models.simple.from_log").FromLog
    for job in json.load(sys.stdin):
        model, task = from_log(logs=job["logs"]), job["task"]
        requests = [types.SimpleNamespace(args=("", {}, None, n, task, "test")) for n in range(len(job["docs"]))]
        results.append(_scores(_config(folder, task), job["docs"], model.generate_until(requests)))
    sys.stdout.write("\n" + json.dumps(results) + "\n")


if __name__ == "__main__":
    main()
