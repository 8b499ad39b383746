"""How the layers of a model are put on pipeline stages, and what is wrong with a way that can't be.

Four ways: evenly; evenly with the embedding or the loss counted as a layer; with a number of layers of its own for the first or
the last stage; or by hand, in Megatron's notation (`parallel.pipeline_layout`). No torch is needed to check them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from megatron_native.config.model import ModelConfig
from megatron_native.config.parallel import ParallelSection
from megatron_native.errors import UserError

_GROUP = re.compile(r"\(([^()]*)\)\*(\d+)")
_REPEAT = re.compile(r"([EtL])\*(\d+)")


def parse_pipeline_layout(text: str) -> list[str]:
    """The model chunks of a layout in Megatron's notation, in the order in which a sequence passes them.

    `E` is the embedding, `t` a layer, `L` the output layer and the loss, `|` goes between chunks, `x*n` and `(…)*n` repeat, and
    commas are for the eye: `Et*2|(t*2|)*2,tL` is `["Ett", "tt", "tt", "tL"]`.

    Raises:
        UserError: something else is in it.
    """
    unrolled = text.replace(",", "").replace(" ", "")
    for pattern in (_GROUP, _REPEAT):
        unrolled = pattern.sub(lambda match: match[1] * int(match[2]), unrolled)
    wrong = re.search(r"[^EtL|]", unrolled)
    if wrong:
        raise UserError(
            f"parallel.pipeline_layout '{text}' has '{wrong[0]}' where none can be: it is made of E (embedding), t (layer), "
            "L (loss), | between chunks, and x*n or (…)*n to repeat."
        )
    return unrolled.split("|")


def layers_of_chunks(parallel: ParallelSection, num_layers: int) -> list[list[int]]:
    """Layers of every model chunk: [pipeline stage][virtual stage], for a split that `pipeline_findings` has nothing against.

    A sequence passes virtual stage 0 of every stage, then virtual stage 1 of every stage, and so on.
    """
    pp, vpp = parallel.pipeline_model_parallel_size, parallel.virtual_pipeline_model_parallel_size or 1
    if parallel.pipeline_layout is not None:
        counts = [chunk.count("t") for chunk in parse_pipeline_layout(parallel.pipeline_layout)]
        return [[counts[virtual * pp + stage] for virtual in range(len(counts) // pp)] for stage in range(pp)]
    first, last = parallel.num_layers_in_first_pipeline_stage, parallel.num_layers_in_last_pipeline_stage
    if first is not None or last is not None:
        middle = num_layers - (first or 0) - (last or 0)
        between = pp - (first is not None) - (last is not None)
        layers = [middle // between if between else 0] * pp
        layers[0] = layers[0] if first is None else first
        layers[-1] = layers[-1] if last is None else last
        return [[count // vpp] * vpp for count in layers]
    embedding, loss = parallel.account_for_embedding_in_pipeline_split, parallel.account_for_loss_in_pipeline_split
    chunk = (num_layers + embedding + loss) // (pp * vpp)
    result = [[chunk] * vpp for _ in range(pp)]
    result[0][0] -= embedding
    result[-1][-1] -= loss
    return result


def pipeline_findings(parallel: ParallelSection, model: ModelConfig) -> Iterator[str]:
    """What is wrong with the split of the layers over the stages, each with what would be right."""
    pp, vpp = parallel.pipeline_model_parallel_size, parallel.virtual_pipeline_model_parallel_size
    first, last = parallel.num_layers_in_first_pipeline_stage, parallel.num_layers_in_last_pipeline_stage
    accounted = _accounted(parallel)
    if vpp is not None and pp == 1:
        yield f"parallel.virtual_pipeline_model_parallel_size {vpp} needs pipeline_model_parallel_size above 1: leave it out"
    if parallel.overlap_p2p_comm and vpp is None:
        yield (
            "parallel.overlap_p2p_comm needs the interleaved schedule (parallel.virtual_pipeline_model_parallel_size): "
            "leave it out"
        )
    if parallel.overlap_p2p_comm is False and vpp is not None and pp == 2:
        yield (
            "parallel.overlap_p2p_comm false batches the messages between two stages, and at pipeline_model_parallel_size 2 "
            "the interleaved schedule would take gradients for activations: leave it out"
        )
    if parallel.defer_embedding_wgrad_compute and pp == 1:
        yield (
            "parallel.defer_embedding_wgrad_compute fills the time in which a pipeline runs empty, and "
            "pipeline_model_parallel_size is 1: switch it off"
        )
    by_hand = [
        name
        for name in ("num_layers_in_first_pipeline_stage", "num_layers_in_last_pipeline_stage")
        if getattr(parallel, name) is not None
    ]
    if parallel.pipeline_layout is not None:
        if by_hand or accounted:
            yield (
                f"parallel.pipeline_layout says where every layer goes, and {', '.join(by_hand + accounted)} says it again: "
                "keep one of them"
            )
        yield from _layout_findings(parallel.pipeline_layout, parallel, model)
    elif by_hand and accounted:
        yield f"parallel.{by_hand[0]} and parallel.{accounted[0]} are two ways to split the layers: keep one of them"
    elif pp == 1 and (by_hand or accounted):
        yield f"parallel.{(by_hand + accounted)[0]} needs pipeline_model_parallel_size above 1: leave it out"
    elif by_hand:
        yield from _edge_findings(first, last, parallel, model)
    else:
        yield from _even_findings(parallel, model, accounted)


def _accounted(parallel: ParallelSection) -> list[str]:
    names = ("account_for_embedding_in_pipeline_split", "account_for_loss_in_pipeline_split")
    return [name for name in names if getattr(parallel, name)]


def _layout_findings(text: str, parallel: ParallelSection, model: ModelConfig) -> Iterator[str]:
    pp, vpp = parallel.pipeline_model_parallel_size, parallel.virtual_pipeline_model_parallel_size
    name = f"parallel.pipeline_layout '{text}'"
    try:
        chunks = parse_pipeline_layout(text)
    except UserError as error:
        yield str(error).rstrip(".")
        return
    if len(chunks) != pp * (vpp or 1):
        yield (
            f"{name} has {len(chunks)} chunks, and pipeline_model_parallel_size {pp} × "
            f"virtual_pipeline_model_parallel_size {vpp or 1} makes {pp * (vpp or 1)}: change one of them"
        )
    order = "".join(chunks)
    if order.count("t") != model.num_layers:
        yield f"{name} has {order.count('t')} layers, and the model has {model.num_layers}"
    if order.count("E") != 1 or not order.startswith("E"):
        yield f"{name} must begin with the embedding E, and have it once"
    if order.count("L") != 1 or not order.endswith("L"):
        yield f"{name} must end with the loss L, and have it once"
    if any(not chunk for chunk in chunks):
        yield f"{name} has an empty chunk: give each at least one layer, the embedding or the loss"


def _edge_findings(first: int | None, last: int | None, parallel: ParallelSection, model: ModelConfig) -> Iterator[str]:
    pp, vpp = parallel.pipeline_model_parallel_size, parallel.virtual_pipeline_model_parallel_size or 1
    given = {
        "num_layers_in_first_pipeline_stage": first,
        "num_layers_in_last_pipeline_stage": last,
    }
    for name, count in given.items():
        if count is not None and count % vpp:
            yield (
                f"parallel.{name} {count} is no multiple of virtual_pipeline_model_parallel_size {vpp}: every stage is cut "
                "into so many equal chunks"
            )
    between = pp - sum(count is not None for count in given.values())
    middle = model.num_layers - sum(count or 0 for count in given.values())
    text = " and ".join(f"parallel.{name} {count}" for name, count in given.items() if count is not None)
    if middle < 0 or bool(middle) != bool(between) or (between and middle % (between * vpp)):
        yield (
            f"{text} leave {max(middle, 0)} of {model.num_layers} layers for the {between} other stages"
            + (f" of {vpp} chunks each" if vpp > 1 else "")
            + ": choose them so that the rest can be shared evenly"
        )


def _even_findings(parallel: ParallelSection, model: ModelConfig, accounted: list[str]) -> Iterator[str]:
    pp, vpp = parallel.pipeline_model_parallel_size, parallel.virtual_pipeline_model_parallel_size
    layers = model.num_layers + len(accounted)
    chunks = pp * (vpp or 1)
    counted = f" (with {', '.join(accounted)}: {layers})" if accounted else ""
    if layers % chunks:
        yield (
            f"{model.num_layers} layers{counted} cannot be split evenly over parallel.pipeline_model_parallel_size {pp}"
            + (f" × virtual_pipeline_model_parallel_size {vpp}" if vpp else "")
            + f": their product must be one of {', '.join(str(n) for n in range(1, layers + 1) if layers % n == 0)}; or say "
            "what each stage has in parallel.pipeline_layout"
        )
