"""`megatron-native inspect`: what is in an indexed dataset."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megatron_native.data.inspect_dataset import DocumentView

SUMMARY = """Look into a Megatron indexed dataset: counts, lengths, ids, the first documents, or one document whole."""

EXAMPLES = """\
  megatron-native inspect data/news_text_document
  megatron-native inspect data/news_text_document --head 10
  megatron-native inspect data/news_text_document --document 1234
  megatron-native inspect data/news_text_document --document https://example.org/article/7
  megatron-native inspect foreign/part_7 --tokenizer models/Meta-Llama-3-8B --json

Lengths are those of all documents; ids are counted in an evenly spread sample of a large dataset."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("dataset", metavar="PREFIX", help="the dataset by its path without .bin/.idx")
    parser.add_argument("--document", metavar="N|ID",
                        help="show this document whole, by its number from 0 or its id (id:7 for an id that is a number)")
    parser.add_argument("--head", type=int, default=3, metavar="K", help="show the first K documents (default: 3)")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR",
                        help="the tokenizer (default: the manifest's, where it is still there)")
    parser.add_argument("--json", action="store_true", help="print as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the facts and the first documents, or one document."""
    import json
    from dataclasses import asdict

    from megatron_native.data.inspect_dataset import DatasetReader, terminal_width

    reader = DatasetReader(arguments.dataset.removesuffix(".idx").removesuffix(".bin"), arguments.tokenizer)
    if arguments.document is not None:
        document = reader.find(arguments.document)
        print(json.dumps(asdict(document), ensure_ascii=False) if arguments.json else _whole(document, reader.tokenizer_remark))
        return 0
    width = terminal_width()
    inspection, head = reader.inspect(), list(reader.head(max(0, arguments.head), width))
    if arguments.json:
        result: dict[str, Any] = {**inspection.as_dict(), "head": [asdict(document) for document in head]}
        print(json.dumps(result, ensure_ascii=False, indent=2))
        return 0
    print(inspection.summary())
    if head:
        print("\nfirst documents")
    for document in head:
        print(_line(document, width))
    return 0


def _title(document: DocumentView) -> str:
    from megatron_native.data.inspect_dataset import shown

    name = "" if document.id is None else f" {shown(document.id)}"
    return f"[{document.number}]{name} · {document.length:,} tokens"


def _line(document: DocumentView, width: int) -> str:
    """A title, and the text on a line of its own, so that a right-to-left text decides its own direction."""
    from megatron_native.data.inspect_dataset import cut_to_width, shown

    text = " ".join(map(str, document.token_ids)) if document.text is None else shown(document.text)
    return f"{_title(document)}\n{cut_to_width(text, width)}"


def _whole(document: DocumentView, remark: str) -> str:
    from megatron_native.data.inspect_dataset import shown

    text = f"({remark})" if document.text is None else shown(document.text, keep_lines=True)
    return f"{_title(document)}\n\n{text}\n\nids: {' '.join(map(str, document.token_ids))}"
