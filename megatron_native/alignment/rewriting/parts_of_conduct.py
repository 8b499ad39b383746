"""Rules, first look and gates as a rewriting's settings ask for them; None where they are switched off."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from megatron_native.errors import UserError

if TYPE_CHECKING:
    from megatron_native.alignment.first_look import FirstLook
    from megatron_native.alignment.gates.judging import Gates
    from megatron_native.alignment.rewriting.settings import RewriteSettings
    from megatron_native.alignment.rules import Rules


def rules_of(settings: RewriteSettings) -> Rules | None:
    """The rules that run before the worker, or alone."""
    if settings.rules is None:
        return None
    from megatron_native.alignment.rules import build_rules

    return build_rules(settings.rules)


def first_look_of(settings: RewriteSettings) -> FirstLook | None:
    """What tells clean passages from those that the worker has to see."""
    if settings.first_look is None or settings.engine == "rules":
        return None
    from megatron_native.alignment.first_look import FirstLook, FirstLookSettings

    known = [field.name for field in fields(FirstLookSettings)]
    if unknown := sorted(set(settings.first_look) - set(known)):
        raise UserError(f"--first-look: unknown settings {', '.join(unknown)}; known are {', '.join(known)}.")
    return FirstLook(FirstLookSettings(**settings.first_look))


def checks_of(settings: RewriteSettings) -> Gates | None:
    """The gates that every rewrite has to pass."""
    if settings.gates is None:
        return None
    from megatron_native.alignment.gates.judging import build_gates

    return build_gates(settings.gates)
