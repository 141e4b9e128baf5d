"""What a machine has: the layers of the decoder's sandbox, versions of the libraries, FFmpeg's protocols, GPUs, extras.

`sightline doctor` prints it. Nothing is read or written but the installation itself.
"""

from __future__ import annotations

import ctypes
import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import av
import av.container.core as av_container
import faiss
import torch
from pydantic import BaseModel, ConfigDict

from index.extras import EXTRA_OF_MODULE
from ingest.decoding.confinement import LAYERS, probe
from ingest.sources.url_policy import LIVE_SCHEMES
from model.profiles.profile import Profile
from pipeline.readiness import Readiness, check_profile

__all__ = ["Diagnosis", "Extra", "Sandbox", "diagnose", "ffmpeg_protocols"]

_DISTRIBUTIONS = ("sightline", "av", "torch", "transformers", "faiss-cpu", "faiss-gpu", "deltalake", "pyarrow", "numpy")
_NOT_PROTOCOLS = {
    "rtsp": "tcp",
    "rtsps": "tls",
    "loop": "file",
}  # schemes that are no protocol of their own: needed one


class Sandbox(BaseModel):
    """Confinement of the processes that decode footage."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    sufficient: bool
    """Whether the layers that matter hold: `--require-sandbox` refuses to run without them."""
    layers: dict[str, str]
    """For each layer the empty string where it holds, else why it does not."""


class Extra(BaseModel):
    """One extra of the distribution."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    name: str
    """Its name, as in `pip install 'sightline[NAME]'`."""
    missing: list[str]
    """Its modules that are not installed; none where the extra is present."""


class Diagnosis(BaseModel):
    """The result of `sightline doctor`."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    sandbox: Sandbox
    """Confinement of the decoder."""
    python: str
    """Version of Python."""
    system: str
    """Kernel and processor."""
    ffmpeg: str
    """Version of FFmpeg inside PyAV."""
    protocols: list[str]
    """Protocols that this FFmpeg can read."""
    schemes: dict[str, bool]
    """For each scheme of live sources, whether this FFmpeg has what it needs."""
    packages: dict[str, str]
    """Versions of the installed packages that matter."""
    cuda: str | None
    """Version of CUDA that torch was built with; None for a build without."""
    gpus: list[str]
    """Names of the GPUs that torch can use."""
    faiss_gpus: int
    """GPUs that faiss can use."""
    extras: list[Extra]
    """The extras, present or not."""
    readiness: Readiness | None = None
    """Whether the machine can run a profile, if one was named."""


def ffmpeg_protocols() -> list[str]:
    """The protocols that PyAV's FFmpeg can read, sorted. PyAV does not list them, its library does."""
    library = ctypes.CDLL(av_container.__file__)  # linked against libavformat
    following = library.avio_enum_protocols
    following.restype = ctypes.c_char_p
    state, names = ctypes.c_void_p(), []
    while name := following(ctypes.byref(state), 0):
        names.append(name.decode())
    return sorted(set(names))


def diagnose(profile: Profile | None = None, store: str = "store") -> Diagnosis:
    """Examine this machine and this installation, and whether it can run `profile` with a store at `store`.

    Raises:
        UsageError: the place of the store is invalid.
    """
    readiness = None if profile is None else check_profile(profile, store)
    posture, protocols = probe(), ffmpeg_protocols()
    cuda = torch.cuda.is_available()
    return Diagnosis(
        sandbox=Sandbox(
            sufficient=posture.sufficient,
            layers={name: posture.layers.get(name, "was not applied") for name in LAYERS},
        ),
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        ffmpeg=av.ffmpeg_version_info,
        protocols=protocols,
        schemes={scheme: _NOT_PROTOCOLS.get(scheme, scheme) in protocols for scheme in sorted(LIVE_SCHEMES)},
        packages={name: found for name in _DISTRIBUTIONS if (found := _version(name))},
        cuda=torch.version.cuda,
        gpus=[torch.cuda.get_device_name(each) for each in range(torch.cuda.device_count())] if cuda else [],
        readiness=readiness,
        faiss_gpus=faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0,
        extras=[
            Extra(name=extra, missing=[name for name, owner in EXTRA_OF_MODULE.items() if owner == extra and _no(name)])
            for extra in sorted(set(EXTRA_OF_MODULE.values()))
        ],
    )


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _no(module: str) -> bool:
    return find_spec(module) is None
