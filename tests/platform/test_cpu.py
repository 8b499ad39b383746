"""The CPU substitute: it redirects what has a meaning on the CPU, and is loud about everything else."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.distributed import REPOSITORY

PRELUDE = """
from megatron_native.platform.quiet import silence_libraries
silence_libraries()
import torch
from megatron_native.platform import cpu
substitute = cpu.install()
"""


def python(body: str) -> str:
    """Run in a process of its own, so that nothing of the substitute stays in this one."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + body], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_device_arguments_of_cuda_mean_the_cpu() -> None:
    body = """
print(torch.zeros(2, device="cuda").device, torch.ones(1).to("cuda:1").device, torch.ones(1).cuda().device,
      torch.empty(1, device=torch.cuda.current_device()).device, torch.ones(1).to(torch.device("cuda", 0)).device)
"""
    assert python(body) == "cpu cpu cpu cpu cpu"


def test_no_backend_of_the_compiler_is_loaded_for_fusions_that_are_off() -> None:
    body = """
import sys
import megatron.core.models.gpt
from megatron.core.fusions import fused_bias_swiglu
print("torch._inductor.compile_fx" in sys.modules, torch.compile.__module__, fused_bias_swiglu.swiglu(torch.zeros(2)).tolist())
"""
    assert python(body) == "False torch [0.0]"


def test_an_unknown_cuda_call_raises_with_its_name() -> None:
    body = """
try:
    torch.cuda.get_device_properties(0)
except cpu.UnsupportedOnCpuError as error:
    print(error)
"""
    assert "torch.cuda.get_device_properties" in python(body)


def test_rng_tracker_keeps_named_states_apart() -> None:
    body = """
import torch.distributed as dist
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
from megatron.core import parallel_state, tensor_parallel
parallel_state.initialize_model_parallel()
torch.manual_seed(1)
tensor_parallel.model_parallel_cuda_manual_seed(1)
outside = torch.get_rng_state()
with tensor_parallel.get_cuda_rng_tracker().fork():
    first = torch.rand(3)
assert torch.equal(torch.get_rng_state(), outside), "forking leaves the outer state alone"
with tensor_parallel.get_cuda_rng_tracker().fork():
    second = torch.rand(3)
assert not torch.equal(first, second), "the named state moves on"
tensor_parallel.model_parallel_cuda_manual_seed(1, force_reset_rng=True)
with tensor_parallel.get_cuda_rng_tracker().fork():
    again = torch.rand(3)
print(torch.equal(first, again))
"""
    assert python(body) == "True"


def test_remove_puts_torch_back() -> None:
    body = """
import torch.cuda.random
cpu.remove()
print(torch.cuda.Stream.__module__, torch.zeros(1).type(), torch.cuda.synchronize.__module__)
"""
    assert python(body) == "torch.cuda.streams torch.FloatTensor torch.cuda"


def test_it_is_never_installed_where_cuda_is() -> None:
    body = """
cpu.remove()
torch.cuda.is_available = lambda: True
try:
    cpu.install()
except cpu.UnsupportedOnCpuError as error:
    print(error)
"""
    assert "never installed on a machine with CUDA" in python(body)


@pytest.mark.parametrize("thread_enters", [True, False])
def test_a_new_thread_must_enter_the_redirection_itself(thread_enters: bool) -> None:
    body = f"""
import threading
seen = []
def work():
    try:
        if {thread_enters}:
            with cpu.device_redirection():
                seen.append(torch.zeros(1, device="cuda").device.type)
        else:
            seen.append(torch.zeros(1, device="cuda").device.type)
    except (AssertionError, RuntimeError) as error:
        seen.append(type(error).__name__)
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(seen[0])
"""
    assert (python(body) == "cpu") is thread_enters


def test_a_stream_may_be_entered_again() -> None:
    """megatron-core does so where gradients are reduced in two steps (several instances of the distributed optimizer)."""
    body = """
context = torch.cuda.stream(torch.cuda.Stream())
for _ in range(2):
    with context:
        print("inside")
"""
    assert python(body).split() == ["inside", "inside"]
