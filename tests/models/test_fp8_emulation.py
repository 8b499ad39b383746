"""The three products of an emulated FP8 linear layer against float64 products of what FP8 stands for, whole and split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_native.models.fp8_numbers import E4M3, E5M2, amax_of, quantise, quantise_blocks, scale_for
from tests.distributed import run_jobs

KINDS = ("column", "row")
JOBS: dict[str, dict[str, Any]] = {
    "tensorwise": {"fp8": {"fp8_recipe": "tensorwise"}},
    "blockwise": {"fp8": {"fp8_recipe": "blockwise"}},
    "delayed": {"fp8": {"fp8_recipe": "delayed"}},
    "e4m3": {"fp8": {"fp8_recipe": "tensorwise", "fp8": "e4m3"}},
    "off": {"fp8": {"fp8_recipe": "tensorwise"}, "quantises": False},
    "megatron-core": {"fp8": {"fp8_recipe": "tensorwise"}, "emulated": False},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs [tokens, batch, features] of one column- and one row-parallel layer, and each job's results."""
    folder = tmp_path_factory.mktemp("fp8")
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(torch.bfloat16)

    inputs = {
        kind: {"input": random(64, 2, 256), "weight": random(512, 256) / 16, "gradient": random(64, 2, 512) * 1e-3}
        for kind in KINDS
    }
    inputs["row"]["input"][:, :, 200] *= 50  # the largest value lies in one rank's part alone
    inputs["column"]["gradient"][:, :, 400] *= 50
    torch.save(inputs, folder / "inputs.pt")
    two = {**JOBS, "tensorwise, sequence parallel": {**JOBS["tensorwise"], "sequence_parallel": True}}
    for size, jobs in ((1, JOBS), (2, two)):
        described = [
            {"sequence_parallel": False, "emulated": True, **job, "inputs": str(folder / "inputs.pt"),
             "output": str(folder / f"{name}.{size}.pt")}
            for name, job in jobs.items()
        ]  # fmt: skip
        run_jobs(folder, size, described, module="tests.models.fp8_worker")
    return folder


def rounded(matrix: torch.Tensor, dtype: torch.dtype, recipe: str, block: tuple[int, int]) -> torch.Tensor:
    if recipe == "blockwise":
        return quantise_blocks(matrix, dtype, block).dequantised().double()
    scale = torch.ones(()) if recipe == "delayed" else scale_for(amax_of(matrix), dtype)
    return quantise(matrix, scale, dtype).dequantised().double()


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Within the rounding of results to BF16, twice."""
    return bool(((found.double() - expected).abs() <= 2.0**-7 * expected.abs() + 2.0**-9 * expected.std()).all())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("recipe", ["tensorwise", "blockwise", "delayed", "e4m3"])
def test_products_are_those_of_rounded_operands(folder: Path, recipe: str, kind: str) -> None:
    given, found = torch.load(folder / "inputs.pt")[kind], torch.load(folder / f"{recipe}.1.pt")[kind]
    x, gradient = given["input"].view(128, 256), given["gradient"].view(128, 512)
    backward = E4M3 if recipe == "e4m3" else E5M2
    weight = rounded(given["weight"], E4M3, recipe, (128, 128))
    output = rounded(x, E4M3, recipe, (1, 128)) @ weight.T
    to_input = rounded(gradient, backward, recipe, (1, 128)) @ weight
    to_weight = rounded(gradient, backward, recipe, (128, 1)).T @ rounded(x, E4M3, recipe, (128, 1))
    assert close(found["output"].view(128, 512), output)
    assert close(found["to_input"].view(128, 256), to_input)
    assert close(found["to_weight"], to_weight)
    exact = x.double() @ given["weight"].double().T
    assert not close(found["output"].view(128, 512), exact), "what was rounded is not what was not"


@pytest.mark.parametrize("size", [1, 2])
def test_switched_off_it_is_megatron_core_bit_for_bit(folder: Path, size: int) -> None:
    ours, theirs = (torch.load(folder / f"{name}.{size}.pt") for name in ("off", "megatron-core"))
    for kind in KINDS:
        for name, tensor in theirs[kind].items():
            assert torch.equal(ours[kind][name], tensor), (kind, name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("recipe", ["tensorwise", "tensorwise, sequence parallel", "delayed", "blockwise"])
def test_tensor_parallelism_rounds_as_one_process_does(folder: Path, recipe: str, kind: str) -> None:
    one = torch.load(folder / f"{recipe.split(',')[0]}.1.pt")[kind]
    two = torch.load(folder / f"{recipe}.2.pt")[kind]
    for name, tensor in one.items():
        # sums over ranks are of partial sums that were rounded to BF16, each product twice: seven roundings of 2⁻⁹ at most
        bound = 2.0**-6 * tensor.abs().max()
        assert (two[name].double() - tensor.double()).abs().max() <= bound, name
    # what is no sum over ranks is the same in every bit, as the scales are: they come from whole matrices
    for name in ("to_weight", "output" if kind == "column" else "to_input"):
        assert torch.equal(two[name], one[name]), name
