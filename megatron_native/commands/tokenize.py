"""`megatron-native tokenize`, also `tools/preprocess_data.py`: documents → Megatron .bin/.idx."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any

from megatron_native.errors import EXIT_REQUEUE, UserError

SUMMARY = "Tokenize shards of documents into Megatron indexed datasets, PREFIX_text_document.{bin,idx}."
EXAMPLES = """\
  tools/preprocess_data.py --input dump/*.jsonl.gz --output-prefix data/news \\
      --tokenizer-type HuggingFaceTokenizer --tokenizer-model models/Meta-Llama-3-8B --append-eod --workers 8
  megatron-native tokenize --input work/dedup/ar/ --output-prefix data/ar \\
      --tokenizer-model models/SmolLM2-135M --append-eod

Inputs are cut into parts of --part-bytes; each worker writes parts of its own, which are joined in the order of the
inputs, so the bytes do not depend on --workers or --engine. The fast engine (fastokens) encodes only where a differential
run shows it equal to Hugging Face's; the manifest says so. A killed run goes on where it was."""

UNSUPPORTED = {
    # Megatron-LM's flag: what to do instead
    "--keep-sequential-samples": "documents always keep the order of the inputs",
    "--partitions": "inputs are cut into parts anyway (--part-bytes)",
    "--vocab-file": "give the tokenizer as one folder with a tokenizer.json by --tokenizer-model",
    "--merge-file": "give the tokenizer as one folder with a tokenizer.json by --tokenizer-model",
    "--vocab-size": "the vocabulary's size is the tokenizer's",
    "--tiktoken-pattern": "make a tokenizer.json of the tiktoken file with transformers' TikTokenConverter",
    "--dataset-impl": "the only layout is the memory-mapped one",
    "--files-filter": "give a glob to --input",
    "--log-interval": "progress is shown as it goes",
}


class _Unsupported(argparse.Action):
    """Note a flag of Megatron-LM's that means something we do not do; `run` says what to do instead."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        namespace.unsupported = [*(getattr(namespace, "unsupported", None) or []), self.option_strings[0]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Megatron-LM's names, where it has one."""
    data = parser.add_argument_group("input and output")
    data.add_argument("--input", nargs="+", required=True, metavar="PATH",
                      help="files, globs or stage folders: .jsonl, .parquet or .txt, also .gz, .zst, .bz2")
    data.add_argument("--output-prefix", required=True, metavar="PREFIX", help="PREFIX_text_document.bin and .idx")
    data.add_argument("--json-keys", nargs="+", default=["text"], metavar="KEY",
                      help="keys that hold text; one dataset a key (default: text)")
    data.add_argument("--id-key", default="id", metavar="KEY", help="key that holds the document's id (default: id)")
    data.add_argument("--text-unit", choices=["file", "line", "paragraph"], default="file",
                      help="what a document is in a plain-text file (default: file)")
    data.add_argument("--max-line-bytes", type=int, default=64 << 20, metavar="N",
                      help="a longer line is refused, not held in memory (default: 64 MiB)")
    data.add_argument("--part-bytes", type=int, default=32 << 20, metavar="N",
                      help="text that one task takes; files are cut or gathered to about that (32 MiB)")
    tokens = parser.add_argument_group("tokenizer")
    tokens.add_argument("--tokenizer-type", default="HuggingFaceTokenizer", metavar="TYPE",
                        help="HuggingFaceTokenizer (default) or SentencePieceTokenizer")
    tokens.add_argument("--tokenizer-model", required=True, metavar="PATH",
                        help="a Hugging Face folder or tokenizer.json; a SentencePiece .model")
    tokens.add_argument("--append-eod", action="store_true", help="end every document with the document separator")
    tokens.add_argument("--eod-token", metavar="TOKEN",
                        help="the separator (default: the base model's, never an Instruct tokenizer's turn end)")
    tokens.add_argument("--bos", action=argparse.BooleanOptionalAction, default=None,
                        help="begin every document with the begin token, or not (default: as the tokenizer's template)")
    tokens.add_argument("--tokenizer-engine", default="auto", choices=("auto", "fastokens", "tokenizers"),
                        help="auto (default): fastokens where its certificate is clean")
    tokens.add_argument("--split-sentences", action="store_true",
                        help="write every sentence as a sequence of its own (PREFIX_text_sentence), with NLTK's Punkt")
    tokens.add_argument("--keep-newlines", action="store_true", help="with --split-sentences: white space stays")
    tokens.add_argument("--lang", default="arabic", help="with --split-sentences: arabic (default) or english")
    place = parser.add_argument_group("where it runs (never changes the output)")
    place.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), metavar="N",
                       help="processes (default: the cores there are)")
    place.add_argument("--engine", default="local", metavar="NAME", help="local or ray (local)")
    place.add_argument("--address", metavar="ADDRESS", help="of a running Ray cluster, or auto; all nodes must see the files")
    place.add_argument("--task-index", type=int, default=0, metavar="I", help="in a job array: which task this is, from 0")
    place.add_argument("--task-count", type=int, default=1, metavar="N", help="in a job array: how many tasks there are")
    for flag in UNSUPPORTED:
        parser.add_argument(flag, nargs="*", action=_Unsupported, dest="unsupported", help=argparse.SUPPRESS)


def run(arguments: argparse.Namespace) -> int:
    """Tokenize, and say what was made of what."""
    _refuse_unsupported(arguments.unsupported or [])
    from megatron_native.data.encode_part import TokenizeSettings
    from megatron_native.data.preprocess import Execution, tokenize
    from megatron_native.engine.tasks import Share

    settings = TokenizeSettings(
        tokenizer_type=arguments.tokenizer_type, tokenizer_model=arguments.tokenizer_model,
        append_eod=arguments.append_eod, eod_token=arguments.eod_token, bos=arguments.bos, id_key=arguments.id_key,
        text_unit=arguments.text_unit, max_line_bytes=arguments.max_line_bytes,
        split_sentences=arguments.lang if arguments.split_sentences else "", keep_newlines=arguments.keep_newlines,
        part_bytes=arguments.part_bytes, engine=arguments.tokenizer_engine,
    )
    execution = Execution(
        arguments.workers, arguments.engine, arguments.address, Share(arguments.task_index, arguments.task_count)
    )
    code = 0
    for dataset in tokenize(
        arguments.input, arguments.output_prefix, settings, arguments.json_keys, execution
    ):
        if not dataset.skipped:
            print(dataset.summary())
        if dataset.missing:
            code = EXIT_REQUEUE
    return code


def _refuse_unsupported(flags: Sequence[str]) -> None:
    if flags:
        raise UserError("; ".join(f"{flag} is not supported: {UNSUPPORTED[flag]}" for flag in flags) + ".")
