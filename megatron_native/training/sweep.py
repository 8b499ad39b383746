"""The peak learning rate by trial: short runs that differ in nothing else, side by side.

Each rate is an ordinary `pretrain` of a few steps in a folder of its own, in a process of its own. What came out is kept in
`sweep.json` after every rate: the same command goes on from there, and further rates join the table. No torch in here.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from megatron_native.checkpoint.layout import TOKENIZER_FOLDER, is_tokenizer_file
from megatron_native.config.load import load_run_config
from megatron_native.config.run import RunConfig
from megatron_native.data.startup_check import STAMP_FILE
from megatron_native.errors import EXIT_DONE, EXIT_REQUEUE, EXIT_USER_ERROR, UserError
from megatron_native.manifest import parameter_differences, write_json
from megatron_native.training.launch import PRETRAIN, with_this_package
from megatron_native.training.line_file import read_json_lines

FORMAT = "megatron-native/sweep/1"
RESULT_FILE = "sweep.json"
LOG_FILE = "sweep.log"
FURTHER = 3.0
"""How much further the grid should go when the best rate is at its edge."""
Status = Literal["done", "diverged", "failed"]


@dataclass(frozen=True)
class SweepSettings:
    """What is asked for.

    Attributes:
        config: the run's YAML file.
        rates: peak learning rates to try, above 0.
        steps: optimizer steps of each run.
        overrides: `section.key=value` over the file, for all runs.
        processes: processes of each run; None for one without a launcher.
        output: folder of the sweep; None for `sweep` in the run folder.
        model: a Hugging Face `config.json` (or its folder) whose shape, with random weights, stands for the model.
        by: held-out set that decides; None for the mean of all, or for the training loss where there is none.
    """

    config: Path
    rates: Sequence[float]
    steps: int
    overrides: Sequence[str] = ()
    processes: int | None = None
    output: Path | None = None
    model: Path | None = None
    by: str | None = None


@dataclass(frozen=True)
class Trial:
    """What came of one learning rate.

    Attributes:
        lr: peak learning rate.
        status: `diverged`: the loss is not finite, or ended above where it began (`read_trial`); `failed`: the run broke off.
        loss: mean training loss of the last tenth of the steps, nats a token; None where it is not finite.
        first_loss: the same of the first tenth.
        heldout: set → bits a byte after the last step.
        remark: why it diverged or failed.
    """

    lr: float
    status: Status
    loss: float | None = None
    first_loss: float | None = None
    heldout: dict[str, float] = field(default_factory=dict)
    remark: str = ""


@dataclass(frozen=True)
class Sweep:
    """All trials of a folder by ascending rate, the best one's rate (None: none is done), and what to do next."""

    trials: list[Trial]
    by: str | None
    best: float | None
    advice: str
    remarks: list[str]

    def table(self) -> str:
        """The trials, readable; the lowest figure of a column has a star."""
        sets = list(dict.fromkeys(name for trial in self.trials for name in trial.heldout))
        done = [trial for trial in self.trials if trial.status == "done"]
        columns = {"last loss": {trial.lr: trial.loss for trial in done}}
        columns |= {f"{name} bits/byte": {trial.lr: trial.heldout.get(name) for trial in done} for name in sets}
        lowest = {
            name: min((value for value in figures.values() if value is not None), default=None)
            for name, figures in columns.items()
        }
        rows = [["lr", *columns, ""]]
        for trial in self.trials:
            cells = [_cell(figures.get(trial.lr), lowest[name]) for name, figures in columns.items()]
            note = "best" if trial.lr == self.best else "" if trial.status == "done" else f"{trial.status}: {trial.remark}"
            rows.append([_short(trial.lr), *cells, note])
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
        return "\n".join([*lines, *self.remarks, self.advice])

    def as_json(self) -> dict[str, Any]:
        """For `sweep.json`."""
        return {
            "best": self.best, "by": self.by, "advice": self.advice, "remarks": self.remarks,
            "trials": [asdict(trial) for trial in self.trials],
        }  # fmt: skip


def run_sweep(settings: SweepSettings, say: Callable[[str], None] = print) -> tuple[Sweep, int]:
    """Try every rate that was not tried yet; the sweep, and the exit code (75: a run was told to stop, and the sweep with it).

    Raises:
        UserError: the configuration or the settings are wrong, or the folder holds a sweep of other settings.
    """
    base = load_run_config(settings.config, settings.overrides)
    _refuse(settings, base)
    output = settings.output or base.run_dir / "sweep"
    shared, remarks = shared_overrides(settings, base, output)
    parameters = _parameters(settings, shared)
    trials = {trial.lr: trial for trial in _read_trials(output / RESULT_FILE, parameters)}
    for number, lr in enumerate(sorted(set(settings.rates)), 1):
        if lr in trials and trials[lr].status != "failed":
            say(f"lr {_short(lr)}: {trials[lr].status} already, skipped")
            continue
        say(f"lr {_short(lr)} ({number} of {len(set(settings.rates))}): {settings.steps} steps in {trial_folder(output, lr)}")
        trial, code = _try(settings, base, output, lr, shared, say)
        if code == EXIT_REQUEUE:
            say(f"lr {_short(lr)}: told to stop; the same command goes on from there")
            return summarise(list(trials.values()), settings.by, remarks), code
        trials[lr] = trial
        found = summarise(list(trials.values()), settings.by, remarks)
        write_json(output / RESULT_FILE, {"format": FORMAT, "parameters": parameters, **found.as_json()})
    found = summarise(list(trials.values()), settings.by, remarks)
    write_json(output / RESULT_FILE, {"format": FORMAT, "parameters": parameters, **found.as_json()})
    return found, EXIT_DONE


def trial_folder(output: Path, lr: float) -> Path:
    """The run folder of one rate: `lr_3e-05`."""
    return output / f"lr_{_short(lr)}"


def shared_overrides(settings: SweepSettings, base: RunConfig, output: Path) -> tuple[list[str], list[str]]:
    """What all trials have over the run's file besides their rate; and remarks on what that changes."""
    remarks = []
    shared = [
        *settings.overrides, "phases=[]", f"training.steps={settings.steps}", "training.stop_after=null",
        "checkpointing.save_interval=0", "checkpointing.save_optimizer=false", "evaluation.interval=0",
        "evaluation.rules=[]", "faults.spike.action=warn",
        f"data.index_cache={_yaml(base.data.index_cache or output / 'index_cache')}",
    ]  # fmt: skip
    if base.evaluation.rules:
        remarks.append("note: evaluation.rules are left out, and held-out sets measured before the first step and at the end.")
    if base.phases:
        remarks.append("note: the phases are left out; every trial learns from data.blend with the optimizer's schedule.")
    longest = settings.steps // 4
    if base.optimizer.warmup_steps > longest:
        shared.append(f"optimizer.warmup_steps={longest}")
        remarks.append(
            f"note: warm-up of {longest} steps instead of {base.optimizer.warmup_steps}, a quarter of the trials' "
            f"{settings.steps} steps at most; a longer one bears a higher rate."
        )
    if settings.model is not None:
        shared += ["model.checkpoint=null", "model.branch_from=null", f"model.hf_config={_yaml(settings.model)}"]
        remarks.append(
            f"note: {settings.model} with random weights stands for the model. The best rate of a small random model does "
            "not carry over one to one: pre-trained weights want less, and larger models too."
        )
    return shared, remarks


def rate_overrides(base: RunConfig, lr: float) -> list[str]:
    """One trial's rate, with the other rates of the optimizer in the same proportion to it."""
    optimizer = base.optimizer
    scale = lr / optimizer.lr if optimizer.lr else 0.0
    return [
        f"optimizer.lr={lr!r}", f"optimizer.min_lr={min(lr, optimizer.min_lr * scale)!r}",
        f"optimizer.warmup_start_lr={optimizer.warmup_start_lr * scale!r}",
    ]  # fmt: skip


def summarise(trials: list[Trial], by: str | None, remarks: Sequence[str] = ()) -> Sweep:
    """The table's order, the best trial and the advice."""
    trials = sorted(trials, key=lambda trial: trial.lr)
    scores = {trial.lr: score for trial in trials if (score := _score(trial, by)) is not None}
    best = min(scores, key=lambda lr: (scores[lr], lr)) if scores else None
    return Sweep(trials, by, best, _advice(trials, best, by), list(remarks))


def read_trial(path: Path, lr: float, steps: int) -> Trial:
    """What a run's `metrics.jsonl` tells of its rate.

    The beginning and the end of the loss are means over a tenth of the steps (at least one), so that one batch decides
    nothing. A run diverged if its loss is not finite at the end, or higher than at the beginning by more than three standard
    errors of their difference: a rate too low to show in so few steps is not a divergence.
    """
    records = read_json_lines(path)
    losses = [_number(record["loss"]) for record in records if "loss" in record and int(record["step"]) <= steps]
    tenth = max(1, steps // 10)
    first, last = _mean(losses[:tenth]), _mean(losses[-tenth:])
    evaluations = [record["heldout"] for record in records if "heldout" in record and int(record["step"]) == steps]
    heldout = {name: _number(score["bits_per_byte"]) for name, score in (evaluations or [{}])[-1].items()}
    finite = {name: value for name, value in heldout.items() if math.isfinite(value)}
    found = Trial(lr, "done", _or_none(last), _or_none(first), finite)
    skipped = [int(record["step"]) for record in records if record.get("updated") is False and int(record["step"]) <= steps]
    if losses and math.isfinite(last) and skipped:
        said = f"the gradients are not finite from step {skipped[0]} on"
        return Trial(lr, "diverged", found.loss, found.first_loss, finite, said)
    if losses and not math.isfinite(last):
        at = next(number for number, loss in enumerate(losses, 1) if not math.isfinite(loss))
        return Trial(lr, "diverged", None, found.first_loss, finite, f"the loss is not finite from step {at} on")
    if len(finite) < len(heldout):
        return Trial(lr, "diverged", found.loss, found.first_loss, finite, "a held-out loss is not finite")
    if losses and last > first + 3 * scatter(losses) * math.sqrt(2 / tenth):
        remark = f"the loss ended at {last:.4f}, above the {first:.4f} that it began with"
        return Trial(lr, "diverged", found.loss, found.first_loss, finite, remark)
    if len(losses) < steps:
        return Trial(lr, "failed", found.loss, found.first_loss, finite, f"{len(losses)} of {steps} steps were done")
    return found


def scatter(losses: Sequence[float]) -> float:
    """Standard deviation of a step's loss around its trend, by the median of the changes from step to step; 0 for one step.

    The change between two steps has the deviation √2 σ, and the median of its size is 0.6745 of that.
    """
    changes = [abs(after - before) for before, after in itertools.pairwise(losses)]
    return statistics.median(changes) / (0.6745 * math.sqrt(2)) if changes else 0.0


def _refuse(settings: SweepSettings, base: RunConfig) -> None:
    if not settings.rates or any(not (math.isfinite(lr) and lr > 0) for lr in settings.rates):
        raise UserError(f"--lr {' '.join(map(str, settings.rates))}: learning rates are numbers above 0.")
    if settings.steps < 1:
        raise UserError(f"--steps {settings.steps}: a trial needs at least one step; a hundred say more.")
    if settings.model is not None and not settings.model.exists():
        raise UserError(f"--model {settings.model} does not exist; give a Hugging Face config.json or its folder.")
    if settings.model is None and base.model.branch_from is not None:
        raise UserError(
            f"model.branch_from = {base.model.branch_from}: trials start anew and can't branch off a run. Sweep with "
            "model.checkpoint instead: model.branch_from=null model.checkpoint=FOLDER."
        )
    names = [heldout.name for heldout in base.evaluation.heldout]
    if settings.by is not None and settings.by not in names:
        raise UserError(f"--by {settings.by}: evaluation.heldout has {', '.join(names) or 'no sets'}.")


def _parameters(settings: SweepSettings, shared: Sequence[str]) -> dict[str, Any]:
    """Everything that the trials of a folder must have in common: the resolved run without its rates and places."""
    resolved = load_run_config(settings.config, shared).model_dump(mode="json")
    for section, name in (("optimizer", "lr"), ("data", "index_cache"), ("data", "verify")):
        del resolved[section][name]
    optimizer = load_run_config(settings.config, settings.overrides).optimizer
    for name in ("min_lr", "warmup_start_lr"):
        resolved["optimizer"][name] = f"{getattr(optimizer, name) / optimizer.lr if optimizer.lr else 0:.6g} × lr"
    del resolved["run_dir"]
    return {"run": resolved, "steps": settings.steps}


def _read_trials(path: Path, parameters: dict[str, Any]) -> list[Trial]:
    if not path.exists():
        return []
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not readable JSON ({error}); delete it to sweep anew.") from None
    if not isinstance(there, dict) or there.get("format") != FORMAT:
        raise UserError(f"{path} is not a {FORMAT} file; choose another --output.")
    differences = parameter_differences(there["parameters"], parameters)
    if differences:
        raise UserError(
            f"{path} is a sweep with other settings: " + "; ".join(differences) + ". Its rates can't be compared with these: "
            "choose another --output, or delete that folder."
        )
    return [Trial(**trial) for trial in there["trials"]]


def _try(
    settings: SweepSettings, base: RunConfig, output: Path, lr: float, shared: Sequence[str], say: Callable[[str], None]
) -> tuple[Trial, int]:
    """Run one rate to its end; its trial and the run's exit code."""
    folder = trial_folder(output, lr)
    if (folder / LOG_FILE).exists():
        shutil.rmtree(folder)  # of a trial that broke off: there is nothing in it to go on from
    elif folder.exists():
        raise UserError(f"{folder} is there and is no trial of a sweep (it has no {LOG_FILE}): choose another --output.")
    folder.mkdir(parents=True, exist_ok=True)
    _bring_tokenizer(settings, base, folder)
    checked = next((path for path in sorted(output.glob(f"lr_*/{STAMP_FILE}")) if path.parent != folder), None)
    if checked is not None:
        shutil.copyfile(checked, folder / STAMP_FILE)  # the same data: checked once in a sweep
    overrides = [*shared, f"run_dir={_yaml(folder)}", *rate_overrides(base, lr)]
    load_run_config(settings.config, overrides)  # what is wrong is said here, once
    command = [sys.executable, *PRETRAIN, "--config", str(settings.config)]
    command += ["--nproc", str(settings.processes)] if settings.processes else []
    code, last_error = _run(command + overrides, folder / LOG_FILE, say)
    metrics = folder / "metrics.jsonl"
    trial = read_trial(metrics, lr, settings.steps) if metrics.exists() else Trial(lr, "failed", remark="it never began")
    if code == EXIT_USER_ERROR and trial.status == "failed":
        raise UserError(f"lr {_short(lr)}: {last_error.removeprefix('error: ')}")
    if code not in (EXIT_DONE, EXIT_REQUEUE) and trial.status != "diverged":
        remark = f"exit code {code}, {folder / LOG_FILE} has its output"
        trial = Trial(lr, "failed", trial.loss, trial.first_loss, trial.heldout, remark)
    if trial.status != "failed" and code != EXIT_REQUEUE:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # weights of a trial are of no use
    return trial, code


def _bring_tokenizer(settings: SweepSettings, base: RunConfig, folder: Path) -> None:
    """A stand-in with random weights has no tokenizer of its own: held-out sets are read with the real model's."""
    source = base.model.checkpoint or base.model.branch_from
    if settings.model is None and base.model.hf_config is None:
        return
    if source is not None:
        tokenizer = source / TOKENIZER_FOLDER
    elif (base.run_dir / TOKENIZER_FOLDER).is_dir():
        tokenizer = base.run_dir / TOKENIZER_FOLDER
    else:
        given = settings.model or base.model.hf_config
        assert given is not None
        tokenizer = given if given.is_dir() else given.parent
    for path in sorted(tokenizer.iterdir()) if tokenizer.is_dir() else []:
        if path.is_file() and is_tokenizer_file(path.name):
            (folder / TOKENIZER_FOLDER).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / TOKENIZER_FOLDER / path.name)


def _run(command: list[str], log: Path, say: Callable[[str], None]) -> tuple[int, str]:
    """Run a command, its output passed on line by line and kept in `log`; its exit code and the last error it printed."""
    error = ""
    with (
        open(log, "w", encoding="utf-8") as kept,
        subprocess.Popen(
            command, env=with_this_package(os.environ), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace",
        ) as process,
    ):  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            kept.write(line)
            say("  " + line.rstrip())
            error = line.strip() if line.startswith("error: ") else error
    return process.returncode, error


def _score(trial: Trial, by: str | None) -> float | None:
    """What trials are compared by, lower is better; None for a trial that can't be compared."""
    if trial.status != "done":
        return None
    if by is not None:
        return trial.heldout.get(by)
    if trial.heldout:
        return sum(trial.heldout.values()) / len(trial.heldout)
    return trial.loss


def _advice(trials: list[Trial], best: float | None, by: str | None) -> str:
    if best is None:
        lowest = trials[0].lr if trials else None
        return "no trial is done" + (f": try rates below {_short(lowest)}." if lowest is not None else ".")
    what = f"the bits per byte of {by}" if by else "the mean of the held-out bits per byte"
    if not by and not any(trial.heldout for trial in trials):
        what = "the last training loss (there is no held-out set, so forgetting is not seen)"
    rates = [trial.lr for trial in trials if trial.status != "failed"]
    place = rates.index(best)
    head = f"best by {what}: lr {_short(best)}"
    if len(rates) == 1:
        return f"{head}, the only one: try {_round(best / FURTHER)} and {_round(best * FURTHER)} too."
    if place == 0:
        return f"{head}, the lowest that was tried: extend the grid, --lr {_round(best / FURTHER)} and below."
    if place == len(rates) - 1:
        return f"{head}, the highest that was tried: extend the grid, --lr {_round(best * FURTHER)} and above."
    return (
        f"{head}, between {_short(rates[place - 1])} and {_short(rates[place + 1])}, which are worse: take it "
        f"(optimizer.lr={_short(best)}), or look closer around it."
    )


def _cell(value: float | None, lowest: float | None) -> str:
    return "-" if value is None else f"{value:.4f}{'*' if value == lowest else ''}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _number(value: Any) -> float:
    """A figure of the metrics; what is not finite may be written as null."""
    return math.nan if value is None else float(value)


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _short(lr: float) -> str:
    return f"{lr:.6g}"


def _round(lr: float) -> str:
    """A rate to try: two digits are enough."""
    return f"{lr:.2g}"


def _yaml(path: Path) -> str:
    """A path as a YAML value, whatever is in its name."""
    return json.dumps(str(path), ensure_ascii=False)
