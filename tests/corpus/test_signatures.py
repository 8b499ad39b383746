"""Signature files: what was signed comes back column by column, and a file that is not whole is refused."""

import numpy as np
import pytest

from megatron_native.corpus.minhash import MinHashSettings, Signer
from megatron_native.corpus.signatures import SignaturePart, SignatureWriter, write_signatures
from tests.corpus.corpus_files import arabic_text

SETTINGS = MinHashSettings()


def signatures(count):
    signer = Signer(SETTINGS)
    return [signer.sign(text) for text in ("", arabic_text(1), "***", *(f"الكلمة {n}" for n in range(count - 3)))]


def write(path, signed):
    with SignatureWriter(path, SETTINGS) as writer:
        for number, one in enumerate(signed):
            writer.add(one, -number)
    return SignaturePart(path)


@pytest.mark.parametrize("count", [3, 4095, 4096, 4097, 9000])
def test_signatures_come_back_as_they_were_signed(tmp_path, count):
    signed = signatures(count)
    part = write(tmp_path / "a", signed)
    assert part.documents == count
    for band in range(14):
        assert part.band(band).tolist() == [one.bands[band] for one in signed]
    assert np.array_equal(part.sketches(), [one.sketch for one in signed])
    assert [row.tobytes() for row in part.digests()] == [one.digest for one in signed]
    assert part.ranks().tolist() == [-number for number in range(count)]
    assert part.empty().tolist() == [one.empty for one in signed]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_the_file_is_its_header_and_its_columns(tmp_path):
    signed = signatures(5)
    write(tmp_path / "a", signed)
    expected = b"MNSIGN1\0" + (5).to_bytes(8, "little") + (14).to_bytes(4, "little") + (112).to_bytes(4, "little")
    expected += b"".join(one.digest for one in signed)
    expected += b"".join(int(one.bands[band]).to_bytes(8, "little") for band in range(14) for one in signed)
    expected += b"".join(one.sketch.tobytes() for one in signed)
    expected += b"".join((-number).to_bytes(8, "little", signed=True) for number in range(5)) + bytes([1, 0, 0, 0, 0])
    assert (tmp_path / "a").read_bytes() == expected


def test_arrays_make_the_same_file(tmp_path):
    signed = [one for one in signatures(50) if not one.empty]
    write(tmp_path / "a", signed)
    write_signatures(
        tmp_path / "b",
        np.array([list(one.digest) for one in signed], dtype=np.uint8),
        np.array([one.bands for one in signed]).T,
        np.array([one.sketch for one in signed]),
        -np.arange(len(signed)),
    )
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_part_without_documents_has_columns_without_rows(tmp_path):
    part = write(tmp_path / "a", [])
    assert (part.documents, part.band(3).shape, part.sketches().shape) == (0, (0,), (0, 112))
    assert (part.digests().shape, part.empty().shape) == ((0, 2), (0,))


@pytest.mark.parametrize("window", [1, 500, 1 << 20])
@pytest.mark.parametrize("digests", [False, True])
def test_rows_are_taken_to_their_places_through_any_window(tmp_path, window, digests):
    part = write(tmp_path / "a", signatures(300))
    whole = part.digests().view(np.uint8) if digests else part.sketches()
    rows, places = np.array([0, 0, 7, 8, 120, 299, 299]), np.array([6, 0, 5, 1, 4, 2, 3])
    out = np.zeros((7, whole.shape[1]), dtype=np.uint8)
    part.take(rows, out, places, digests, window)
    assert np.array_equal(out[places], whole[rows])


def test_a_stretch_of_a_column(tmp_path):
    part = write(tmp_path / "a", signatures(100))
    assert np.array_equal(part.band(13, 20, 90), part.band(13)[20:90])
    assert np.array_equal(part.digests(99, 100), part.digests()[99:])
    assert np.array_equal(part.empty(0, 1), [True])


def test_a_writer_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), SignatureWriter(tmp_path / "a", SETTINGS) as writer:
        for one in signatures(5000):
            writer.add(one, 0)
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writer_left_is_not_read(tmp_path):
    for name in ("a.band3.partial", "a.partial", "a.sketches.partial"):
        (tmp_path / name).write_bytes(b"half a column")
    signed = signatures(20)
    assert write(tmp_path / "a", signed).band(3).tolist() == [one.bands[3] for one in signed]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_file_that_is_not_whole_is_refused(tmp_path):
    write(tmp_path / "a", signatures(20))
    whole = (tmp_path / "a").read_bytes()
    for content, said in ((whole[:-1], "20 signatures take"), (whole + b"0", "take"), (b"{}", "holds no signatures")):
        (tmp_path / "b").write_bytes(content)
        with pytest.raises(ValueError, match=said):
            SignaturePart(tmp_path / "b")
