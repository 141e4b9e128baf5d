"""Checkpoint files: where they are, their digest, and tensors by name.

Knows folders, the hub and its cache, and safetensors. Does not know models.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, Literal

from index.errors import WeightsInvalid, WeightsNotFound
from index.files import cache_folder, write_atomically
from model.profiles.profile import Source

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "SourceState",
    "check_tensors",
    "loading",
    "look_up",
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
    """The local folder (or file) of `source`. A hub repository is read from the cache, or downloaded.

    Args:
        source: the place that a profile names.
        needs: glob patterns that must each match a file of the folder; alternatives are separated by `|`.
        takes: patterns of further files to download from a repository.
        what: the name of the weights in error messages, such as `frame encoder`.

    PyTorch's `.bin` files are pickles, which can execute code where a library reads them carelessly. They are neither
    downloaded nor read unless `source.allow_pickle` is set, and then with `weights_only=True`.

    Raises:
        WeightsNotFound: the folder or a file is missing, or the repository is not in the cache and cannot be
            downloaded.
    """
    if not source.allow_pickle:
        needs, takes = (tuple(_without_pickles(patterns)) for patterns in (needs, takes))
    if source.hub is not None:
        return _from_hub(source.hub, source.revision, needs, takes, what)
    path = source.folder if source.folder is not None else _PACKAGE / str(source.package)
    if path.is_file():
        return path
    if not path.is_dir():
        raise WeightsNotFound(f"{what}: {path} does not exist; put the weights there or name another source")
    missing = _missing(path, needs)
    if missing:
        if not source.allow_pickle and any(path.glob("*.bin")):
            raise WeightsNotFound(
                f"{what}: {path} has no {missing}, only .bin files, which are pickles; convert them to safetensors, or "
                "set allow_pickle = true at this source in the profile if you trust their author"
            )
        raise WeightsNotFound(f"{what}: {path} has no {missing}; copy the whole checkpoint folder there")
    return path


def _without_pickles(patterns: Sequence[str]) -> Iterator[str]:
    """The patterns without alternatives that are PyTorch's `.bin` files."""
    for pattern in patterns:
        kept = [each for each in pattern.split("|") if not each.endswith(".bin")]
        if kept:
            yield "|".join(kept)


def _from_hub(repo: str, revision: str | None, needs: Sequence[str], takes: Sequence[str], what: str) -> Path:
    """The folder of a hub repository in the hub's cache; the arguments are those of `resolve`."""
    hub = _hub()
    patterns = [alternative for need in (*needs, *takes) for alternative in need.split("|")]
    files = ", ".join(need.split("|")[0] for need in needs)
    advice = f"download {files} of {repo} at revision {revision} and name their folder in a profile file (--profile)"
    try:
        cached = Path(hub.snapshot_download(repo, revision=revision, allow_patterns=patterns, local_files_only=True))
        if not _missing(cached, needs):
            return cached
    except OSError:
        pass
    if hub.constants.HF_HUB_OFFLINE:
        raise WeightsNotFound(f"{what}: {repo} is not in the cache and the hub is switched off; {advice}")
    try:
        # One cheap request first: without a network the download itself would retry for half a minute.
        listed = hub.model_info(repo, revision=revision, timeout=_PROBE_SECONDS, files_metadata=True).siblings or []
        wanted = _files_to_fetch([each.rfilename for each in listed], needs, takes)
        # It shows its progress, and continues a download that was interrupted.
        folder = Path(hub.snapshot_download(repo, revision=revision, allow_patterns=wanted or patterns))
    except Exception as error:  # releases of the hub's client raise errors of three different HTTP libraries
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsNotFound(
            f"{what}: {repo} is not in the cache and cannot be fetched ({reason}); {advice}"
        ) from error
    missing = _missing(folder, needs)
    if missing:
        raise WeightsNotFound(f"{what}: {repo} (revision {revision}) has no {missing}; name another source")
    for each in listed:
        digest = None if each.lfs is None else each.lfs.sha256
        if each.rfilename in wanted and digest is not None and _file_digest(folder / each.rfilename) != digest:
            raise WeightsInvalid(
                f"{what}: {folder / each.rfilename} differs from the file of {repo}; delete it and try again"
            )
    return folder


@dataclass(frozen=True, slots=True)
class SourceState:
    """Where the weights of a source are."""

    state: Literal["here", "fetchable", "missing"]
    """On this machine, on the hub within reach, or neither."""
    bytes: int
    """Bytes of the weights: on the disk, or to fetch."""
    problem: str = ""
    """Why they are missing."""


def look_up(source: Source) -> SourceState:
    """Where the weights of `source` are; fetches nothing. The hub is asked once for what is not in its cache."""
    hub = _hub()
    patterns = ("*.safetensors", *(("*.bin",) if source.allow_pickle else ()))
    if source.hub is None:
        path = source.folder if source.folder is not None else _PACKAGE / str(source.package)
        size = path.stat().st_size if path.is_file() else _size_of(path, patterns)
        return SourceState("here", size) if size else SourceState("missing", 0, f"{path} has no weights")
    try:
        cached = Path(hub.snapshot_download(source.hub, revision=source.revision, local_files_only=True))
        if size := _size_of(cached, patterns):
            return SourceState("here", size)
    except OSError:
        pass
    if hub.constants.HF_HUB_OFFLINE:
        return SourceState("missing", 0, f"{source.hub} is not in the cache and the hub is switched off")
    try:
        found = hub.model_info(source.hub, revision=source.revision, timeout=_PROBE_SECONDS, files_metadata=True)
    except Exception as error:  # releases of the hub's client raise errors of three different HTTP libraries
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return SourceState("missing", 0, f"{source.hub} is not in the cache and cannot be fetched ({reason})")
    sizes = {each.rfilename: each.size or 0 for each in found.siblings or []}
    wanted = _files_to_fetch(list(sizes), ("|".join(patterns),), ())
    if not wanted:
        return SourceState("missing", 0, f"{source.hub} has no weights as {' or '.join(patterns)}")
    return SourceState("fetchable", sum(sizes[name] for name in wanted))


def _hub() -> Any:
    """The hub's client, which is slow to import and seldom needed."""
    import huggingface_hub

    return huggingface_hub


def _size_of(folder: Path, patterns: Sequence[str]) -> int:
    """Bytes of the files of the first pattern that matches any."""
    found = ([path.stat().st_size for path in folder.glob(pattern)] for pattern in patterns)
    return sum(next((sizes for sizes in found if sizes), []))


def _files_to_fetch(names: Sequence[str], needs: Sequence[str], takes: Sequence[str]) -> list[str]:
    """The files of a repository that are downloaded: of each of `needs` those of the first alternative that there is,
    so that weights come in one format, and all of `takes`."""
    wanted: set[str] = set()
    for need in needs:
        found = ([n for n in names if fnmatchcase(n, pattern)] for pattern in need.split("|"))
        wanted.update(next((files for files in found if files), []))
    wanted.update(name for name in names if any(fnmatchcase(name, pattern) for pattern in takes))
    return sorted(wanted)


def _missing(folder: Path, needs: Sequence[str]) -> str | None:
    """The first pattern of `needs` that no file of `folder` matches."""
    for need in needs:
        if not any(next(folder.glob(alternative), None) for alternative in need.split("|")):
            return need.replace("|", " or ")
    return None


def weights_files(folder: Path) -> list[Path]:
    """Files with the weights of a checkpoint folder: all safetensors."""
    return sorted(folder.glob("*.safetensors"))


def weights_digest(files: Sequence[Path]) -> str:
    """SHA-256 of one file, or of the list of the digests of several files; hex.

    Digests are cached in the user's cache folder by path, size and modification time, so that loading a model does not
    read its weights twice.

    Raises:
        WeightsNotFound: a file cannot be read.
    """
    digests = [_file_digest(path) for path in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _file_digest(path: Path) -> str:
    """SHA-256 of a file, hex; from the cache if the file is unchanged."""
    real = path.resolve()
    try:
        stat = real.stat()
        key = f"{real}:{stat.st_size}:{stat.st_mtime_ns}"
        digests = _cached_digests()
        if key not in digests:
            with real.open("rb") as file:
                digests[key] = hashlib.file_digest(file, "sha256").hexdigest()
            with suppress(OSError):  # a cache that cannot be written only costs time
                write_atomically(_digest_cache(), json.dumps(digests), parents=True, durable=False)
    except OSError as error:
        raise WeightsNotFound(f"{path}: cannot read the weights ({error.strerror}); check the folder") from error
    return digests[key]


def _digest_cache() -> Path:
    return cache_folder() / "digests.json"


def _cached_digests() -> dict[str, str]:
    """Digests by path, size and modification time; empty if the cache is missing or damaged."""
    try:
        return {str(k): str(v) for k, v in json.loads(_digest_cache().read_text()).items()}
    except (OSError, ValueError, AttributeError):
        return {}


def tensor_files(folder: Path) -> dict[str, Path]:
    """Map the name of every tensor of a safetensors checkpoint to the file that contains it; reads headers only.

    With a `*.safetensors.index.json`, the checkpoint consists of the shards that it names, otherwise of all
    safetensors.

    Raises:
        WeightsNotFound: the folder has no safetensors, or a shard is missing.
        WeightsInvalid: a file does not parse, a tensor is in two files, or it is not in the file that the index names.
    """
    index = next(iter(sorted(folder.glob("*.safetensors.index.json"))), None)
    mapped: dict[str, str] = {}
    if index is not None:
        try:
            mapped = {str(k): str(v) for k, v in json.loads(index.read_text(encoding="utf-8"))["weight_map"].items()}
        except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
            raise WeightsInvalid(f"{index}: is not a valid index of shards ({error}); download it again") from error
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
    """Map the names of `tensor_files` to the shapes of the tensors; reads headers only."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(set(files.values())):
        with _opened(path) as file:
            for name, where in files.items():
                if where == path:
                    shapes[name] = tuple(file.get_slice(name).get_shape())
    return shapes


def check_tensors(what: str, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Compare the names and shapes of tensors.

    Raises:
        WeightsInvalid: a tensor is missing, extra or of another shape. The message begins with `what` and names the
            tensor.
    """
    for name in sorted(expected.keys() - found.keys()):
        raise WeightsInvalid(f"{what}: tensor {name} {list(expected[name])} is missing; is it the right checkpoint?")
    for name in sorted(found.keys() - expected.keys()):
        raise WeightsInvalid(f"{what}: tensor {name} {list(found[name])} is one too many; is it the right checkpoint?")
    for name in sorted(expected):
        if found[name] != expected[name]:
            raise WeightsInvalid(f"{what}: tensor {name} should be {list(expected[name])}, got {list(found[name])}")


def stream_tensors(files: Mapping[str, Path], names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors `names` with their names, one in memory at a time, shard by shard.

    Args:
        files: see `tensor_files`.
        names: tensors to read.

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
    """An open safetensors file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise WeightsInvalid(f"{path}: not a safetensors file ({error}); download it again") from error


def read_tensors(folder: Path, renames: Mapping[str, str]) -> dict[str, Tensor]:
    """Tensors of a safetensors checkpoint by their new names; only those whose name matches a pattern.

    Args:
        folder: contains one or more `*.safetensors`.
        renames: regular expression → replacement (as in `re.sub`). The first expression that matches the start of a
            name gives the new name; names that match none are not read.

    Raises:
        WeightsNotFound: see `tensor_files`.
        WeightsInvalid: see `tensor_files`; also if no name matches.
    """
    files = tensor_files(folder)
    chosen = renamed(files, renames)
    if not chosen:
        raise WeightsInvalid(f"{folder}: no tensor named like {' or '.join(renames)}; is it the right checkpoint?")
    return {chosen[name]: tensor for name, tensor in stream_tensors(files, chosen)}


def renamed(names: Iterable[str], renames: Mapping[str, str]) -> dict[str, str]:
    """Map each of `names` that matches a pattern to its new name (see `read_tensors`)."""
    patterns = [(re.compile(pattern), new) for pattern, new in renames.items()]
    chosen: dict[str, str] = {}
    for name in names:
        pattern, new = next(((p, n) for p, n in patterns if p.match(name)), (None, ""))
        if pattern is not None:
            chosen[name] = pattern.sub(new, name, count=1)
    return chosen


@contextmanager
def loading(what: str, folder: Path) -> Iterator[None]:
    """A context manager for loading a checkpoint from `folder` by a library, without its progress bars and warnings.

    Raises:
        WeightsInvalid: the library raised an error; the message contains `what` and the first line of that error.
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
