"""A process that answers requests with a journal: `python -m tests.alignment.backends.journal_run URL JOURNAL OUTPUT N`.

Each answer is a JSON line of OUTPUT; a test kills the process and starts it again.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from megatron_native.alignment.backends.answer_journal import AnswerJournal
from megatron_native.alignment.backends.backend import Request
from megatron_native.alignment.backends.openai_server import OpenAIBackend
from megatron_native.alignment.backends.server_settings import ServerSettings


def make_requests(number: int) -> list[Request]:
    """Questions that differ by their number."""
    return [
        Request(f"p{index}", [{"role": "user", "content": f"سؤال رقم {index}, كيف الحال?"}], 32)
        for index in range(number)
    ]


def main() -> None:
    url, journal, output, number = sys.argv[1:]
    settings = ServerSettings(concurrency=4, backoff_seconds=0.02)
    with AnswerJournal(Path(journal)) as answers, open(output, "a", encoding="utf-8", buffering=1) as file:
        backend = OpenAIBackend([url], "editor", settings=settings, journal=answers)
        for answer in backend.answers(make_requests(int(number))):
            file.write(json.dumps([answer.key, answer.text], ensure_ascii=False) + "\n")
        backend.close()
    print("done", flush=True)


if __name__ == "__main__":
    main()
