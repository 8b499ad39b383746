"""The fake platform: any rank of a run of any size, without storage, and nothing of it stays behind."""

from __future__ import annotations

from tests.platform.test_cpu import python

FAKE = """
import sys
import torch.distributed as dist
from torch.nn import functional
from megatron_native.platform.fake import fake_platform
from megatron.core import parallel_state
"""


def test_ranks_of_one_run_are_built_one_after_another_and_leave_everything_as_it_was() -> None:
    body = """
before = (torch.cuda.current_device, functional.scaled_dot_product_attention, parallel_state.create_group, sys.excepthook,
          torch.get_rng_state().tolist())
for rank in (0, 300, 511):
    with fake_platform(rank, 512):
        parallel_state.initialize_model_parallel(8, 4, 5, num_distributed_optimizer_instances=2)
        print(dist.get_rank(), dist.get_world_size(), parallel_state.get_tensor_model_parallel_rank(),
              parallel_state.get_pipeline_model_parallel_rank(), parallel_state.get_data_parallel_rank(),
              dist.get_world_size(parallel_state.get_data_parallel_group()), torch.rand(10**15, 10).device,
              torch.zeros(2, device="cuda").device, torch.cuda.current_device(), torch.tensor([7]).item())
after = (torch.cuda.current_device, functional.scaled_dot_product_attention, parallel_state.create_group, sys.excepthook,
         torch.get_rng_state().tolist())
print(before == after, dist.is_initialized(), torch.zeros(1).device, torch.zeros(1, device="cuda").device)
"""
    # By hand: rank = tensor + 8 · (data + 16 · stage); 300 = 4 + 8 · (5 + 16 · 2), 511 = 7 + 8 · (15 + 16 · 3).
    assert python(FAKE + body).splitlines() == [
        "0 512 0 0 0 16 meta meta meta 7",
        "300 512 4 2 5 16 meta meta meta 7",
        "511 512 7 3 15 16 meta meta meta 7",
        "True False cpu cpu",
    ]


def test_a_fault_inside_leaves_nothing_behind_and_a_real_group_is_not_touched() -> None:
    body = """
try:
    with fake_platform(1, 4):
        raise KeyError("inside")
except KeyError:
    print(dist.is_initialized(), torch.zeros(1).device)
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
try:
    with fake_platform(0, 4):
        pass
except RuntimeError as error:
    print(dist.get_backend(), "a process group is up" in str(error))
"""
    assert python(FAKE + body).splitlines() == ["False cpu", "gloo True"]


def test_attention_on_meta_keeps_what_the_kernel_of_a_real_device_keeps() -> None:
    body = """
def kept(device):
    query, key, value = (torch.zeros(1, 8, 64, 16, device=device, requires_grad=True) for _ in range(3))
    shapes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: shapes.append(tuple(t.shape)) or t, lambda t: t):
        functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.25)
    return sorted(shapes)
real = kept("cpu")
with fake_platform(0, 1):
    print(kept("meta") == real, (1, 8, 64, 64) in real)
"""
    assert python(FAKE + body) == "True False"
