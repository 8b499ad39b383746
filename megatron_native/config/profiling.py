"""Where a step's time goes: the breakdown, the profiler, marks for Nsight Systems."""

from __future__ import annotations

from pydantic import Field

from megatron_native.config.section import Section


class ProfilingSection(Section):
    """Measurements of speed."""

    breakdown_interval: int = Field(default=0, ge=0)
    """Steps between breakdowns of a step's time (data, forward, backward, exposed communication, optimizer, checkpoint);
    on CUDA a measured step waits for the device at its beginning and its end. 0 makes none."""
    steps: list[int] = Field(default=[])
    """Steps that torch's profiler records; one trace file a step and rank under `profile/` in the run folder."""
    ranks: list[int] = Field(default=[0])
    """Processes that record."""
    nvtx: bool = False
    """Mark the parts of a step with NVTX ranges, for Nsight Systems."""
    peak_tflops: float | None = Field(default=None, gt=0)
    """Peak of one GPU, in dense TFLOP/s of the run's precision, that utilisation is measured against; by default that of the
    GPU as its maker states it, where it is known."""
