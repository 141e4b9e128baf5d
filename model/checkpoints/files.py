"""Where weights lie on disk, what their digest is, and tensors read by pattern.

Knows files, the hub's cache and safetensors; knows no model.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from index.errors import WeightsInvalid, WeightsNotFound
from model.profiles.profile import Source

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "check_tensors",
    "loading",
    "read_tensors",
    "renamed",
    "resolve",
    "stream_tensors",
    "tensor_files",
    "tensor_shapes",
    "weights_digest",
    "weights_files",
]

_PACKAGE = Path(__file__).parents[1]
_PROBE_SECONDS = 10.0


def resolve(source: Source, *, needs: Sequence[str], takes: Sequence[str] = (), what: str) -> Path:
    """The local folder (or file) of `source`; a hub repository is taken from the cache, else downloaded.

    Args:
        source: where the profile says the weights are.
        needs: glob patterns that must each match a file of the folder; alternatives are separated by `|`.
        takes: patterns of what else to download of a repository.
        what: how the error message calls it, such as `frame encoder`.

    Raises:
        WeightsNotFound: neither there nor in the cache, or the hub cannot be reached.
    """
    if source.hub is not None:
        return _from_hub(source.hub, source.revision, needs, takes, what)
    path = source.folder if source.folder is not None else _PACKAGE / str(source.package)
    if path.is_file():
        return path
    if not path.is_dir():
        raise WeightsNotFound(f"{what}: {path} does not exist; put the weights there or name another source")
    missing = _missing(path, needs)
    if missing:
        raise WeightsNotFound(f"{what}: {path} has no {missing}; copy the whole checkpoint folder there")
    return path


def _from_hub(repo: str, revision: str | None, needs: Sequence[str], takes: Sequence[str], what: str) -> Path:
    from huggingface_hub import constants, model_info, snapshot_download

    patterns = [alternative for need in (*needs, *takes) for alternative in need.split("|")]
    files = ", ".join(need.split("|")[0] for need in needs)
    give = f"download {files} of {repo} at revision {revision} and name their folder in a profile file (--profile)"
    try:
        cached = Path(snapshot_download(repo, revision=revision, allow_patterns=patterns, local_files_only=True))
        if not _missing(cached, needs):
            return cached
    except OSError:
        pass
    if constants.HF_HUB_OFFLINE:
        raise WeightsNotFound(f"{what}: {repo} is not in the cache and the hub is switched off; {give}")
    try:
        # One cheap question first: without a network the download itself would retry for half a minute.
        model_info(repo, revision=revision, timeout=_PROBE_SECONDS)
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the hub's client has changed its HTTP library, and so its errors, twice
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsNotFound(f"{what}: {repo} is not in the cache and cannot be fetched ({reason}); {give}") from error
    missing = _missing(folder, needs)
    if missing:
        raise WeightsNotFound(f"{what}: {repo} (revision {revision}) has no {missing}; name another source")
    return folder


def _missing(folder: Path, needs: Sequence[str]) -> str | None:
    for need in needs:
        if not any(next(folder.glob(alternative), None) for alternative in need.split("|")):
            return need.replace("|", " or ")
    return None


def weights_files(folder: Path) -> list[Path]:
    """The files that hold the weights of a checkpoint folder: all safetensors, else the PyTorch `.bin` files."""
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))


def weights_digest(files: Sequence[Path]) -> str:
    """SHA-256 of one file, or of the list of several files' digests, hex.

    Digests of large files are remembered in the user's cache folder by path, size and modification time, so that
    loading a model does not read its weights twice.

    Raises:
        WeightsNotFound: a file is not there.
    """
    digests = [_file_digest(path) for path in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _file_digest(path: Path) -> str:
    real = path.resolve()
    try:
        stat = real.stat()
        key = f"{real}:{stat.st_size}:{stat.st_mtime_ns}"
        remembered = _remembered()
        if key not in remembered:
            with real.open("rb") as file:
                remembered[key] = hashlib.file_digest(file, "sha256").hexdigest()
            _remember(remembered)
    except OSError as error:
        raise WeightsNotFound(f"{path}: cannot read the weights ({error.strerror}); check the folder") from error
    return remembered[key]


def _memory() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sightline" / "digests.json"


def _remembered() -> dict[str, str]:
    try:
        return {str(k): str(v) for k, v in json.loads(_memory().read_text()).items()}
    except (OSError, ValueError, AttributeError):
        return {}


def _remember(digests: Mapping[str, str]) -> None:
    """Best effort: a cache that cannot be written only costs time."""
    memory = _memory()
    part = memory.with_suffix(f".{os.getpid()}.part")
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(digests))
        part.replace(memory)
    except OSError:
        part.unlink(missing_ok=True)


def tensor_files(folder: Path) -> dict[str, Path]:
    """Every tensor of a safetensors checkpoint, by name, and the file that holds it; reads headers only.

    Where there is a `*.safetensors.index.json`, the shards it names are the checkpoint, else all safetensors are.

    Raises:
        WeightsNotFound: there are no safetensors in the folder, or a shard is missing.
        WeightsInvalid: a file does not parse, a tensor is in two files, or not where the index says.
    """
    index = next(iter(sorted(folder.glob("*.safetensors.index.json"))), None)
    mapped: dict[str, str] = {}
    if index is not None:
        try:
            mapped = {str(k): str(v) for k, v in json.loads(index.read_text(encoding="utf-8"))["weight_map"].items()}
        except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
            raise WeightsInvalid(
                f"{index}: does not read as an index of shards ({error}); download it again"
            ) from error
    files = [folder / name for name in sorted(set(mapped.values()))] or sorted(folder.glob("*.safetensors"))
    if not files:
        raise WeightsNotFound(f"{folder}: no *.safetensors there; put the checkpoint's weights in that format")
    found: dict[str, Path] = {}
    for path in files:
        if not path.is_file():
            first = min(name for name, file in mapped.items() if file == path.name)
            raise WeightsNotFound(f"{path}: the shard with {first} is missing; download the whole checkpoint")
        with _opened(path) as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                if name in found:
                    raise WeightsInvalid(f"{folder}: tensor {name} is in {found[name].name} and in {path.name}")
                found[name] = path
    for name, shard in mapped.items():
        if found.get(name) != folder / shard:
            raise WeightsInvalid(f"{folder}: tensor {name} is not in {shard}, where the index has it")
    return found


def tensor_shapes(files: Mapping[str, Path]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor that `tensor_files` found, without reading it."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(set(files.values())):
        with _opened(path) as file:
            for name, where in files.items():
                if where == path:
                    shapes[name] = tuple(file.get_slice(name).get_shape())
    return shapes


def check_tensors(what: str, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Compare names and shapes.

    Raises:
        WeightsInvalid: a tensor is missing, extra or of another shape; the message begins with `what` and names it.
    """
    for name in sorted(expected.keys() - found.keys()):
        raise WeightsInvalid(f"{what}: tensor {name} {list(expected[name])} is missing; is it the right checkpoint?")
    for name in sorted(found.keys() - expected.keys()):
        raise WeightsInvalid(f"{what}: tensor {name} {list(found[name])} is one too many; is it the right checkpoint?")
    for name in sorted(expected):
        if found[name] != expected[name]:
            raise WeightsInvalid(f"{what}: tensor {name} should be {list(expected[name])}, got {list(found[name])}")


def stream_tensors(files: Mapping[str, Path], names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """The named tensors, one in memory at a time, shard by shard.

    Raises:
        WeightsInvalid: a file does not parse.
    """
    wanted = set(names)
    for path in sorted({files[name] for name in wanted}):
        with _opened(path) as file:
            for name in sorted(wanted):
                if files[name] == path:
                    yield name, file.get_tensor(name)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise WeightsInvalid(f"{path}: not a safetensors file ({error}); download it again") from error


def read_tensors(folder: Path, renames: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors of a safetensors checkpoint whose name a pattern matches, under their new names.

    Args:
        folder: one or many `*.safetensors`.
        renames: regular expression → replacement (as in `re.sub`); the first that matches from the start of a name
            gives the new name, and names that none matches are not read.

    Raises:
        WeightsNotFound, WeightsInvalid: see `tensor_files`; also where nothing matched.
    """
    files = tensor_files(folder)
    chosen = renamed(files, renames)
    if not chosen:
        raise WeightsInvalid(f"{folder}: no tensor named like {' or '.join(renames)}; is it the right checkpoint?")
    return {chosen[name]: tensor for name, tensor in stream_tensors(files, chosen)}


def renamed(names: Iterable[str], renames: Mapping[str, str]) -> dict[str, str]:
    """Name → new name of those that a pattern matches (see `read_tensors`)."""
    patterns = [(re.compile(pattern), new) for pattern, new in renames.items()]
    chosen: dict[str, str] = {}
    for name in names:
        pattern, new = next(((p, n) for p, n in patterns if p.match(name)), (None, ""))
        if pattern is not None:
            chosen[name] = pattern.sub(new, name, count=1)
    return chosen


@contextmanager
def loading(what: str, folder: Path) -> Iterator[None]:
    """Load a library's checkpoint from `folder` without its progress bars and advice.

    Raises:
        WeightsInvalid: the library refused; says `what` and the first line of why.
    """
    from safetensors import SafetensorError
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except (SafetensorError, UnpicklingError, RuntimeError, ValueError, LookupError, TypeError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsInvalid(f"{what}: {folder} does not load ({reason}); check its files") from error
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
