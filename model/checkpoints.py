"""Where weights lie on disk, what their digest is, and tensors read by pattern.

Knows files, the hub's cache and safetensors; knows no model.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING

from index.errors import WeightsInvalid, WeightsNotFound
from model.profiles import Source

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["loading", "read_tensors", "resolve", "weights_digest", "weights_files"]

_PACKAGE = Path(__file__).parent
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


def read_tensors(folder: Path, renames: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors of a safetensors checkpoint whose name a pattern matches, under their new names.

    Args:
        folder: one or many `*.safetensors`.
        renames: regular expression → replacement (as in `re.sub`); the first that matches from the start of a name
            gives the new name, and names that none matches are not read.

    Raises:
        WeightsNotFound: there are no safetensors in the folder.
        WeightsInvalid: a file does not parse, or nothing matched.
    """
    from safetensors import SafetensorError, safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise WeightsNotFound(f"{folder}: no *.safetensors there; put the checkpoint's weights in that format")
    patterns = [(re.compile(pattern), new) for pattern, new in renames.items()]
    tensors: dict[str, Tensor] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a mapping)
                    for pattern, new in patterns:
                        if pattern.match(name):
                            tensors[pattern.sub(new, name, count=1)] = file.get_tensor(name)
                            break
        except (SafetensorError, OSError) as error:
            raise WeightsInvalid(f"{path}: not a safetensors file ({error}); download it again") from error
    if not tensors:
        raise WeightsInvalid(f"{folder}: no tensor named like {' or '.join(renames)}; is it the right checkpoint?")
    return tensors


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
