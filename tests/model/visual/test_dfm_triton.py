"""The kernel of DFM against plain torch: in Triton's interpreter, through its compiler for a GPU, and on a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from structlog.testing import capture_logs

from model.visual import dfm
from model.visual.dfm import merge
from tests.support.interpreted_dfm import random_frames

pytest.importorskip("triton")


def test_the_kernel_gives_what_plain_torch_gives() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.interpreted_dfm"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    errors = json.loads(done.stdout)
    assert len(errors) == 40
    assert max(errors.values()) < 1e-4, errors


def test_the_kernel_compiles_for_a_gpu_that_is_not_here() -> None:
    """For SigLIP-so400m's patches on an H100 or H200, with none of its numbers spilled out of the registers."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    import model.visual.dfm_triton as module

    arrays = {"patches": "*fp16", "direction": "*fp32", "tops": "*fp32", "totals": "*fp32", "sums": "*fp32"}
    numbers = {"n": "i32", "m": "i32", "d": "i32", "places": "i32", "scale": "fp32"}
    main, rest = module.blocks_of(1152)
    assert (main, rest) == (1024, 128)
    constants = {"frames_": module.frames_of(1152), "main": main, "rest": rest}
    source = ASTSource(
        module.partial_merge,
        signature={**arrays, **numbers, **dict.fromkeys(constants, "constexpr")},
        constexprs=constants,
        attrs={(i,): [["tt.divisibility", 16]] for i in (0, 1, 4, 7)},  # as aligned arrays and d = 1152 are
    )
    options = {"num_warps": module.WARPS, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert compiled.asm["cubin"]
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    said = ""
    for assembler in sorted(tools.glob("ptxas*"), reverse=True):  # which of them knows this PTX differs by version
        done = subprocess.run(
            [assembler, "-v", "--gpu-name=sm_90a", "-", "-o", os.devnull],
            input=compiled.asm["ptx"],
            capture_output=True,
            text=True,
            check=False,
        )
        said += done.stderr
    assert "0 bytes spill stores, 0 bytes spill loads" in said


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("n", "m", "d"), [(1, 729, 1152), (38, 729, 1152), (301, 196, 1152), (7, 36, 192)])
def test_on_a_gpu_it_gives_what_plain_torch_gives(n: int, m: int, d: int, dtype: torch.dtype) -> None:
    for against in (True, False):
        patches, reference, query = (tensor.cuda() for tensor in random_frames(n, m, d, dtype))
        chosen = reference if against else None
        plain = merge(patches.double(), chosen, query)  # in float64 there is no kernel
        got = merge(patches, chosen, query)
        assert got.dtype == dtype
        tolerance = {torch.float32: 1e-3, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
        torch.testing.assert_close(got.double(), plain, rtol=tolerance, atol=tolerance)


def test_where_the_kernel_cannot_run_plain_torch_does_and_says_so() -> None:
    dfm.checked_kernel.cache_clear()
    with capture_logs() as logs:
        assert dfm.checked_kernel(torch.device("cpu")) is None  # as on a GPU that Triton does not know
    assert [entry["event"] for entry in logs] == ["DFM runs in plain torch here"]
