"""What is set in the environment of a run on CUDA, by layout and mode."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from megatron_native.config.environment import check_environment, cuda_environment
from megatron_native.config.megatron import transformer_fields
from megatron_native.errors import UserError
from tests.config.models import LLAMA3_8B, run_of
from tests.distributed import REPOSITORY

EXACT = {"NCCL_ALGO": "Ring", "NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
START = """
import json, os, sys
from megatron_native.platform import start_platform
start_platform("cpu", cuda_environment=json.loads(sys.argv[1]))
print(json.dumps(dict(os.environ)))
"""


@pytest.mark.parametrize(
    ("parallel", "connections"),
    [({}, "32"), ({"pipeline_model_parallel_size": 2}, "32"), ({"tensor_model_parallel_size": 2}, "1"),
     ({"context_parallel_size": 2}, "1")],
)  # fmt: skip
def test_one_queue_where_layers_are_split(parallel: dict[str, Any], connections: str) -> None:
    assert cuda_environment(run_of(parallel=parallel))["CUDA_DEVICE_MAX_CONNECTIONS"] == connections


def test_every_run_on_cuda_has_the_base() -> None:
    base = {
        "TORCH_NCCL_AVOID_RECORD_STREAMS": "1", "TORCH_NCCL_HIGH_PRIORITY": "1", "NCCL_NVLS_ENABLE": "0",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    }  # fmt: skip
    for mode in ("fast", "exact"):
        assert base.items() <= cuda_environment(run_of(training={"mode": mode})).items()


def test_stages_send_in_large_pieces() -> None:
    assert "NCCL_P2P_NET_CHUNKSIZE" not in cuda_environment(run_of())
    assert cuda_environment(run_of(parallel={"pipeline_model_parallel_size": 2}))["NCCL_P2P_NET_CHUNKSIZE"] == "2097152"


def test_norms_leave_processors_to_communication_that_overlaps() -> None:
    margins = {"NVTE_FWD_LAYERNORM_SM_MARGIN": "20", "NVTE_BWD_LAYERNORM_SM_MARGIN": "20"}
    overlapping = run_of(parallel={"overlap_grad_reduce": True})
    assert margins.items() <= cuda_environment(overlapping).items()
    assert not margins.keys() & cuda_environment(run_of()).keys()
    assert (
        not margins.keys()
        & cuda_environment(run_of(parallel={"overlap_grad_reduce": True}, training={"mode": "exact"})).keys()
    )


def test_the_modes_differ_in_determinism() -> None:
    assert not EXACT.keys() & cuda_environment(run_of()).keys()
    assert EXACT.items() <= cuda_environment(run_of(training={"mode": "exact"})).items()


def test_the_users_own_variables_are_over_the_projects() -> None:
    environment = cuda_environment(run_of(environment={"NCCL_NVLS_ENABLE": "1", "NCCL_IB_HCA": "mlx5"}))
    assert (environment["NCCL_NVLS_ENABLE"], environment["NCCL_IB_HCA"]) == ("1", "mlx5")


@pytest.mark.parametrize(
    ("environ", "environment", "said"),
    [
        ({"NVTE_ALLOW_NONDETERMINISTIC_ALGO": "1"}, {}, "NVTE_ALLOW_NONDETERMINISTIC_ALGO is '1' in the environment"),
        ({"CUBLAS_WORKSPACE_CONFIG": ":0:0"}, {}, "set it to :4096:8 or :16:8"),
        (
            {},
            {"NCCL_ALGO": "NVLS"},
            "NCCL_ALGO is 'NVLS' in the section environment: unset it, or set it to Ring or Tree",
        ),
    ],
)
def test_the_exact_mode_is_refused_where_the_environment_undoes_it(
    environ: dict[str, str], environment: dict[str, str], said: str
) -> None:
    exact = run_of(training={"mode": "exact"}, environment=environment)
    with pytest.raises(UserError) as caught:
        check_environment(exact, environ)
    assert said in str(caught.value)
    check_environment(run_of(environment=environment), environ)  # fast promises nothing
    check_environment(run_of(training={"mode": "exact"}), {"NCCL_ALGO": "Tree"})


def test_the_cpu_gets_none_of_it() -> None:
    run = run_of(parallel={"tensor_model_parallel_size": 2, "sequence_parallel": True, "tp_comm_overlap": True})
    assert transformer_fields(run, LLAMA3_8B, "cpu", "torch")["tp_comm_overlap"] is False
    wanted = cuda_environment(run)
    environment = {name: value for name, value in os.environ.items() if name not in wanted}
    environment |= {"PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""}
    started = [sys.executable, "-c", START, json.dumps(wanted)]
    there = subprocess.run(started, env=environment, capture_output=True, text=True, check=True).stdout
    assert not wanted.keys() & json.loads(there.splitlines()[-1]).keys()
