"""A disk that refuses, said in one paragraph, also where torch.save has put an error of its own over the disk's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from megatron_native.errors import UserError


@contextmanager
def said_of_disk(what: str) -> Iterator[None]:
    """Raise `UserError` for an `OSError` inside, or for a `RuntimeError` that follows one; `what` could not be made."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        refusal: BaseException | None = error
        while refusal is not None and not isinstance(refusal, OSError):
            refusal = refusal.__cause__ or refusal.__context__
        if refusal is None:
            raise
        raise UserError(
            f"{what} could not be made: {refusal}. Nothing is left under its name; free some space or choose an output on "
            "another disk, and give the command again."
        ) from error
