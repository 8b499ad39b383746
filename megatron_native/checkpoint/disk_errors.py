"""A disk that refuses, said in one paragraph, also where torch.save has put an error of its own over the disk's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from megatron_native.errors import UserError

NOTHING_LEFT = (
    "Nothing is left under its name; free some space or choose an output on another disk, and give the command again."
)


@contextmanager
def said_of_disk(what: str, afterwards: str = NOTHING_LEFT) -> Iterator[None]:
    """Raise `UserError` for an `OSError` inside, or for a `RuntimeError` that follows one: `what` could not be made.

    `afterwards`: what is left of it, and what to do.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        refusal: BaseException | None = error
        while refusal is not None and not isinstance(refusal, OSError):
            refusal = refusal.__cause__ or refusal.__context__
        if refusal is None:
            raise
        raise UserError(f"{what} could not be made: {refusal}. {afterwards}") from error
