"""Processor time of the processes that a test has started and waited for."""

import resource


def seconds_of_children() -> float:
    """User and system time so far."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
