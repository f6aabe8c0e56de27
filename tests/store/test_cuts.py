"""How files are cut into parts: their sizes as text, clean spans, and what is worth copying."""

import random
from itertools import islice

import pytest

from modelfs.store.cuts import (
    COPIED_MAX,
    MIB,
    PART_MIN,
    PARTS_MAX,
    UPLOAD_CUT,
    CleanSpans,
    Cut,
    Piece,
    cut_of,
    sparing,
)

GIB = 1 << 30
CUT = Cut(((10, 2), (30, 1), (5, 1)))


def test_the_last_run_goes_on_until_the_file_ends() -> None:
    assert list(islice(CUT.lengths(), 6)) == [10, 10, 30, 5, 5, 5]
    pieces = list(CUT.pieces(58))
    assert pieces == [
        Piece(1, 0, 10),
        Piece(2, 10, 10),
        Piece(3, 20, 30),
        Piece(4, 50, 5),
        Piece(5, 55, 3),
    ]
    assert [CUT.number_at(at) for at in (0, 9, 10, 19, 20, 49, 50, 54, 55)] == [
        *(1, 1, 2, 2, 3, 3, 4, 4, 5),
    ]
    assert list(CUT.pieces(0)) == []


def test_sizes_are_read_back_from_their_text() -> None:
    assert CUT.text == "10*2,30*1,5*1"
    assert Cut.parse(CUT.text) == CUT
    for text in (None, "", "10", "10*0", "0*1", "a*1", "1*1,", "-1*1", "1*1;1*1", "٣*1"):
        assert Cut.parse(text) is None


@pytest.mark.parametrize("size", [1, 8 * MIB, 6 * GIB, 31 * GIB, 500 * GIB, 5 << 40])
def test_files_of_every_size_that_s3_takes_fit_into_one_upload(size: int) -> None:
    count = UPLOAD_CUT.count(size)
    assert 1 <= count <= PARTS_MAX
    last = UPLOAD_CUT.piece(count, size)
    assert last.length > 0
    assert last.end == size
    assert UPLOAD_CUT.piece(count + 1, size).length == 0
    assert max(length for length, _ in UPLOAD_CUT.runs) <= 5 * GIB  # S3's limit of a part


def test_clean_spans_are_what_was_never_written() -> None:
    rng = random.Random(1)
    for _ in range(200):
        size = rng.randrange(60) * MIB + rng.randrange(MIB)
        clean, written = CleanSpans(size), bytearray(size // 1000 + 1)
        for _ in range(rng.randrange(6)):
            start = rng.randrange(size + 1) // 1000 * 1000
            end = None if rng.random() < 0.2 else start + rng.randrange(20) * 1_000_000
            clean.remove(start, end)
            stop = len(written) if end is None else end // 1000
            written[start // 1000 : stop] = bytes([1]) * (min(stop, len(written)) - start // 1000)
        spans = list(clean)
        assert spans == sorted(spans)
        assert all(end - start >= PART_MIN for start, end in spans)
        for start, end in spans:
            assert not any(written[-(-start // 1000) : end // 1000])
        long_runs = [run for run in bytes(written).split(b"\1") if len(run) * 1000 > PART_MIN + MIB]
        assert len(spans) >= len(long_runs)


def check(size: int, clean: CleanSpans) -> list[Piece] | None:
    pieces = sparing(size, clean)
    if pieces is None:
        return None
    assert [piece.number for piece in pieces] == list(range(1, len(pieces) + 1))
    at, spans = 0, list(clean)
    for piece in pieces:
        assert piece.offset == at
        assert piece.length >= PART_MIN or piece.end == size
        assert piece.length < 2 * (COPIED_MAX if piece.is_copied else 8 * MIB)
        if piece.is_copied:
            assert any(start <= piece.offset and piece.end <= end for start, end in spans)
        at = piece.end
    assert at == size
    return pieces


def test_an_append_copies_what_was_there_and_sends_the_rest() -> None:
    clean = CleanSpans(50 * MIB + 7)
    pieces = check(51 * MIB, clean)
    assert pieces == [Piece(1, 0, 50 * MIB + 7, is_copied=True), Piece(2, 50 * MIB + 7, MIB - 7)]
    assert sparing(4 * MIB, CleanSpans(3 * MIB)) is None  # too short for a part
    assert sparing(50 * MIB, CleanSpans()) is None


def test_what_was_written_in_the_middle_is_sent_in_parts_that_are_long_enough() -> None:
    clean = CleanSpans(40 * MIB)
    clean.remove(20 * MIB, 20 * MIB + 100)
    pieces = check(40 * MIB, clean)
    assert pieces is not None
    assert sum(piece.length for piece in pieces if not piece.is_copied) == PART_MIN


def test_where_less_than_half_is_clean_all_of_it_is_sent() -> None:
    clean = CleanSpans(40 * MIB)
    clean.remove(0, 25 * MIB)
    assert sparing(40 * MIB, clean) is None
    assert sparing(100 * MIB, CleanSpans(40 * MIB)) is None


def test_pieces_cover_every_file_and_none_but_the_last_is_short() -> None:
    rng = random.Random(2)
    spared = 0
    for _ in range(500):
        old = rng.choice([rng.randrange(30), rng.randrange(300), 3000]) * MIB + rng.randrange(MIB)
        clean = CleanSpans(old)
        for _ in range(rng.randrange(5)):
            start = rng.randrange(old + 1)
            clean.remove(start, start + rng.randrange(1, 3 * MIB))
        size = old + rng.randrange(4) * MIB
        spared += check(size, clean) is not None
    assert spared > 100


def test_sizes_of_pieces_are_told_by_metadata_as_long_as_they_fit() -> None:
    pieces = [Piece(1, 0, 9), Piece(2, 9, 9), Piece(3, 18, 4)]
    assert cut_of(pieces) == Cut(((9, 2), (4, 1)))
    many = [Piece(n, 0, 1_000_000 + n) for n in range(1, 200)]
    assert cut_of(many) is None
