"""What a fine-tuning was or would be, as lines for a terminal."""

from __future__ import annotations

from collections.abc import Mapping

from megatron_native.errors import EXIT_DONE
from megatron_native.posttraining.finetune import FinetuneResult


def table(result: FinetuneResult, planned: bool = False) -> str:
    """The account of the conversations, the length of the run and, where it was trained, how the held-out loss changed."""
    plan, account = result.plan, result.account
    rows = [
        ("conversations", f"{account['kept']:,} of {account['read']:,} read" + _lost(account)),
        ("an epoch", f"{plan.conversations:,.0f} conversations, {plan.tokens:,.0f} tokens, {plan.learned_tokens:,.0f} of "
         f"answers ({_share(plan.learned_tokens, plan.tokens)})"),
        ("packed into", f"{plan.sequences:,.0f} sequences of {plan.seq_length:,} tokens, {plan.fill:.1%} full"),
        ("a step", f"{plan.batch:,} sequences, about {plan.conversations * plan.batch / plan.sequences:,.0f} conversations"),
        ("the run", f"{plan.steps:,} steps, {plan.epochs:.2f} epochs, {plan.tokens * plan.epochs:,.0f} tokens"),
        ("held out", _evaluation(result)),
    ]  # fmt: skip
    if not planned and result.exit_code == EXIT_DONE and result.last_step is not None:
        rows += _outcome(result)
    width = max(len(name) for name, _ in rows)
    return "\n".join(
        [*(f"{name:<{width}}  {value}" for name, value in rows), *(f"note: {note}" for note in result.notes)]
    )


def _outcome(result: FinetuneResult) -> list[tuple[str, str]]:
    rows = []
    if result.before is not None and result.after is not None:
        change = f" ({result.after / result.before - 1:+.1%})" if result.before > 0 else ""
        rows.append((
            "held-out loss", f"{result.before:.4f} before, {result.after:.4f} after{change}, in nats per token of answers",
        ))  # fmt: skip
    ended = ", where the run ended early" if result.ended_early else ""
    which = f"step {result.step}" + (" (the last)" if result.step == result.last_step else f" of {result.last_step}")
    what = "nothing to do: it was there" if result.skipped else "exported"
    rows.append((what, f"{which}{ended}: {result.output}"))
    return rows


def _evaluation(result: FinetuneResult) -> str:
    held = result.account.get("held_out", 0)
    if not held:
        return "nothing: the run can't end early, and its last checkpoint is exported"
    return f"{held:,} conversations, measured every {result.plan.evaluation_interval:,} steps"


def _lost(account: Mapping[str, dict[str, int]]) -> str:
    reasons = {**account["dropped"], **account["quarantined"]}
    return "; not used: " + ", ".join(f"{reason} {count:,}" for reason, count in reasons.items()) if reasons else ""


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "0%"
