"""How a run is split over processes, and what of its communication overlaps with computing."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from megatron_native.config.section import Section


class ParallelSection(Section):
    """How the model and the batch are split over processes, with Megatron's names."""

    tensor_model_parallel_size: int = Field(default=1, gt=0)
    """Processes that share every layer's matrices."""
    pipeline_model_parallel_size: int = Field(default=1, gt=0)
    """Processes that share the layers, in order."""
    virtual_pipeline_model_parallel_size: int | None = Field(default=None, gt=1)
    """Interleaved schedule: model chunks per pipeline process (2 or more); none for the plain 1F1B schedule."""
    pipeline_layout: str | None = None
    """Stages by hand, in Megatron's notation: `E` the embedding, `t` a layer, `L` the loss, `|` between chunks, `(…)*n` and
    `t*n` repeated: `Et*2|(t*2|)*2,tL`. Virtual stages come one after another: chunk 1 of every stage, then chunk 2."""
    num_layers_in_first_pipeline_stage: int | None = Field(default=None, gt=0)
    """Layers of the first pipeline process, which has the embedding too; the others share the rest."""
    num_layers_in_last_pipeline_stage: int | None = Field(default=None, gt=0)
    """Layers of the last pipeline process, which has the output layer and the loss too."""
    account_for_embedding_in_pipeline_split: bool = False
    """Count the embedding as one layer when the layers are split evenly."""
    account_for_loss_in_pipeline_split: bool = False
    """Count the output layer and the loss as one layer when the layers are split evenly."""
    context_parallel_size: int = Field(default=1, gt=0)
    """Processes that share every sequence; on GPUs with Transformer Engine only. Never run on a GPU."""
    cp_comm_type: Literal["p2p", "all_gather", "a2a", "a2a+p2p"] = "p2p"
    """How context parallelism exchanges keys and values: around a ring (`p2p`), gathered, or by heads (`a2a`)."""
    sequence_parallel: bool = False
    """Split activations outside the matrices along the sequence; needs tensor parallelism."""
    tp_comm_overlap: bool = False
    """Overlap the communication of tensor parallelism with the matrix products, through Transformer Engine's user buffers;
    needs `sequence_parallel`, on GPUs only."""
    overlap_p2p_comm: bool | None = None
    """Overlap sends between pipeline stages with computing; by default with the interleaved schedule, which is the only one
    that can."""
    defer_embedding_wgrad_compute: bool = False
    """Compute the output layer's weight gradient while the pipeline runs empty; on GPUs with NVIDIA's Apex only."""
    wgrad_deferral_limit: int = Field(default=0, ge=0)
    """Micro-batches whose output-layer gradient may wait; 0: all of a step."""
    use_distributed_optimizer: bool = True
    """Shard optimizer state over data-parallel processes."""
    num_distributed_optimizer_instances: int = Field(default=1, gt=0)
    """Groups of data-parallel processes that each hold the whole optimizer state: more memory, shorter collectives."""
    overlap_grad_reduce: bool = False
    """Overlap gradient reduction with the backward pass (a GPU setting)."""
    overlap_param_gather: bool = False
    """Overlap parameter gathering with the forward pass (a GPU setting)."""
    reduce_scatter_with_fp32_accumulation: bool = False
    """Send BF16 gradients and sum them in FP32: half the traffic of an FP32 reduction; worth a try at 16 data-parallel
    processes and more."""
    pad_buckets_for_high_nccl_busbw: bool = False
    """Pad gradient buckets to sizes that NCCL moves fastest; worth a try at 16 data-parallel processes and more."""
