"""What autograd keeps is counted by storage, once, as long as it is kept."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from megatron_native.training.plan.saved_tensors import SavedTensors


class Two(nn.Module):
    """Two matrices with a square between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(10, 20, bias=False), nn.Linear(20, 5, bias=False)

    def forward(self, values: Tensor) -> Tensor:
        """[n, 10] → [n, 5]."""
        return self.second(self.first(values) ** 2)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_each_storage_counts_once_under_the_module_that_kept_it_first(device: str) -> None:
    model = Two().to(device)
    values = torch.zeros(7, 10, device=device)
    count = SavedTensors([model], lambda name: name or "between")
    with count.counting():
        output = model(values)
        output = output + model(values[:3]).sum()  # a view: the same storage, whole
    # By hand, 4 bytes a number: the input [7, 10]; the results of the first matrix, [7, 20] and [3, 20], kept by the square,
    # and the squares, kept by the second. Weights are parameters.
    assert count.by_component() == {"first": 280, "between": 560 + 240, "second": 560 + 240}
    assert count.bytes() == count.peak_bytes == 1880
    torch.autograd.backward(output, torch.ones_like(output))
    assert (count.bytes(), count.peak_bytes) == (0, 1880)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_is_recomputed_is_kept_no_longer_than_its_own_backward_pass(device: str) -> None:
    layers = nn.ModuleList([Two(), Two()]).to(device)
    inputs = [torch.zeros(7, 10, device=device, requires_grad=True) for _ in layers]
    count = SavedTensors(layers)
    with count.counting():
        outputs = [checkpoint(layer, values, use_reentrant=True) for layer, values in zip(layers, inputs)]
        assert count.bytes() == 2 * 280  # the inputs alone
        for output in outputs:
            torch.autograd.backward(output, torch.ones_like(output))
    # The first input and all of its layer, beside the second input. torch keeps a copy of the input's data: one storage.
    assert count.peak_bytes == 2 * 280 + 560 + 560
    assert count.bytes() == 0
