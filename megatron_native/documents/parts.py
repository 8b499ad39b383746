"""Parts: the work of a stage, cut so that one huge file uses every core and a thousand small ones make few outputs.

A file is cut into pieces where its format allows: plain JSONL (and text of one document a line) at any byte, zstd
between frames that tell their size, Parquet between row groups, a zip into its members. Pieces are then gathered, in
order, into parts of about `part_bytes`. The cut depends on the files and that setting alone, never on the workers.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from megatron_native.documents.columns import row_groups
from megatron_native.documents.compression import zstd_frames
from megatron_native.documents.inputs import PARQUET_SUFFIXES, READABLE_SUFFIXES, ZIP_SUFFIXES, is_json, is_text
from megatron_native.errors import UserError

PART_BYTES = 32 << 20
_COMPRESSION = 4
"""Bytes of text that a byte of a compressed file is taken for, when parts are gathered."""


@dataclass(frozen=True)
class Piece:
    """A range of one file.

    Attributes:
        path: the file.
        start, stop: bytes of the file as it lies (of a Parquet file row groups); None: to its end.
        offset: where the range begins in the decompressed file, in bytes (of a Parquet file in rows).
        member: of a zip archive, the member.
        source: what its records' `source` says: the file's place below the inputs' common root; "" for `path`.
    """

    path: str
    start: int = 0
    stop: int | None = None
    offset: int = 0
    member: str | None = None
    source: str = ""


@dataclass(frozen=True)
class Part:
    """One task of a stage.

    Attributes:
        number: of this stage's parts, 0 for the first.
        pieces: in the order of the inputs; all from one folder.
        folder: the place of that folder below the inputs' common root; "" for the root itself.
        bytes: of the files as they lie.
    """

    number: int
    pieces: tuple[Piece, ...]
    folder: str
    bytes: int

    @property
    def name(self) -> str:
        """`part-00000`."""
        return f"part-{self.number:05d}"


def plan_parts(files: Sequence[Path], root: Path, text_unit: str = "file", part_bytes: int = PART_BYTES) -> list[Part]:
    """The parts of a stage over `files`.

    Args:
        files: the inputs, in order.
        root: the folder around them; parts never mix files of two folders.
        text_unit: plain text is cut only where a document is a line.
        part_bytes: wished size of a part, in bytes of text; compressed files count fourfold.
    """
    if part_bytes < 1:
        raise UserError(f"--part-bytes {part_bytes}: it must be 1 or more (32 MiB is 33554432).")
    parts: list[Part] = []
    gathered: list[Piece] = []
    weight, size, folder = 0, 0, ""

    def close() -> None:
        nonlocal gathered, weight, size
        if gathered:
            parts.append(Part(len(parts), tuple(gathered), folder, size))
        gathered, weight, size = [], 0, 0

    for file in files:
        place = file.parent.resolve().relative_to(root).as_posix()
        place = "" if place == "." else place
        source = f"{place}/{file.name}" if place else file.name
        for piece, piece_bytes in _pieces(file, text_unit, part_bytes):
            piece = replace(piece, path=str(file.absolute()), source=source)
            piece_weight = piece_bytes * (1 if _is_plain(file) else _COMPRESSION)
            if place != folder or weight + piece_weight > part_bytes:
                close()
                folder = place
            gathered.append(piece)
            weight, size = weight + piece_weight, size + piece_bytes
    close()
    return parts


def _is_plain(path: Path) -> bool:
    return path.suffix.lower() in (".jsonl", ".json", ".ndjson", ".txt", ".arrow")


def _may_be_array(path: Path) -> bool:
    """Whether a file named .json may hold one array instead of lines; compressed ones are taken for arrays."""
    if not path.name.lower().endswith((".json", ".json.zst")):
        return False
    with open(path, "rb") as file:
        return path.suffix.lower() != ".json" or file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (
            b"[",
            b"",
        )


def _pieces(path: Path, text_unit: str, part_bytes: int) -> list[tuple[Piece, int]]:
    """The pieces of a file, with their bytes as they lie."""
    name, size = path.name.lower(), path.stat().st_size
    whole = [(Piece(str(path)), size)]
    if name.endswith(ZIP_SUFFIXES):
        return zip_pieces(path)
    cuttable = (is_text(name) and text_unit == "line") or (is_json(name) and not _may_be_array(path))
    if name.endswith(PARQUET_SUFFIXES):
        return _row_group_pieces(path, size, part_bytes // _COMPRESSION) or whole
    if name.endswith(".zst") and cuttable and size > part_bytes // _COMPRESSION:
        return _frame_pieces(path, size, part_bytes // _COMPRESSION) or whole
    if _is_plain(path) and cuttable and size > part_bytes:
        starts = range(0, size, part_bytes)
        stops = [*starts[1:], None]
        return [
            (Piece(str(path), start, stop, start), (size if stop is None else stop) - start)
            for start, stop in zip(starts, stops, strict=True)
        ]
    return whole


def _frame_pieces(path: Path, size: int, piece_bytes: int) -> list[tuple[Piece, int]]:
    frames = zstd_frames(path)
    if not frames:
        return []
    starts = [frames[0]]
    for frame in frames[1:]:
        if frame.start - starts[-1].start >= piece_bytes:
            starts.append(frame)
    stops = [*(frame.start for frame in starts[1:]), None]
    return [
        (Piece(str(path), frame.start, stop, frame.content_start), (size if stop is None else stop) - frame.start)
        for frame, stop in zip(starts, stops, strict=True)
    ]


def _row_group_pieces(path: Path, size: int, piece_bytes: int) -> list[tuple[Piece, int]]:
    groups = row_groups(path)
    if not groups:
        return []
    whole = sum(group_bytes for _, group_bytes in groups) or 1
    pieces: list[tuple[Piece, int]] = []
    start, first_row, row, weight = 0, 0, 0, 0
    for index, (rows, group_bytes) in enumerate(groups):
        row, weight = row + rows, weight + size * group_bytes // whole
        if weight >= piece_bytes or index == len(groups) - 1:
            pieces.append((Piece(str(path), start, index + 1, first_row), weight))
            start, first_row, weight = index + 1, row, 0
    return pieces


def zip_pieces(path: Path) -> list[tuple[Piece, int]]:
    """The members of an archive that can be read, in its order.

    Raises:
        UserError: it holds none.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
    except zipfile.BadZipFile:
        return [(Piece(str(path), member=""), path.stat().st_size)]
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}.") from error
    readable = [
        (Piece(str(path), member=member.filename), member.compress_size)
        for member in members
        if member.filename.lower().endswith(READABLE_SUFFIXES) and not member.filename.startswith("__MACOSX/")
        and not member.filename.lower().endswith((*PARQUET_SUFFIXES, ".arrow", ".zip", ".gz", ".zst", ".bz2"))
    ]  # fmt: skip
    if not readable:
        names = ", ".join(member.filename for member in members[:5]) or "nothing"
        raise UserError(f"{path} holds no .json, .jsonl or .txt ({names}); unpack it and name the files.")
    return readable
