"""The window of a reader. Pure."""

from hypothesis import given
from hypothesis import strategies as st

from modelfs.store.readahead import (
    AHEAD_FACTOR,
    BATCH_PARTS,
    BULK_BYTES,
    NEAR_BYTES,
    STREAMS_MAX,
    ReadAhead,
)

PART = 8 << 20
READ = 1 << 20
WINDOW = 64 << 20


def window(parts: int = 100) -> ReadAhead:
    return ReadAhead(PART, parts * PART, WINDOW)


def test_a_first_read_brings_nothing_ahead() -> None:
    assert len(window().after(0, BULK_BYTES - 1)) == 0
    assert len(window().after(PART, READ)) == 0


def test_a_large_read_at_the_beginning_brings_the_next_parts_side_by_side_with_it() -> None:
    assert list(window().after(0, READ)) == [1, 2]
    assert len(window(1).after(0, READ)) == 0
    assert len(ReadAhead(PART, 100 * PART, WINDOW, is_eager=False).after(0, READ)) == 0


def test_the_window_grows_with_what_was_read_in_sequence_up_to_a_bound() -> None:
    ahead, seen = window(), []
    for offset in range(0, 20 * PART, READ):
        end = max([part + 1 for part in ahead.after(offset, READ)] + seen[-1:] or [0])
        seen.append(end)
        assert end * PART <= offset + READ + AHEAD_FACTOR * (offset + READ) + 2 * PART
        assert end * PART <= offset + READ + PART + WINDOW
    assert seen[:2] == [3, 3]
    assert seen[-1] * PART >= 19 * PART + WINDOW // 2


def test_no_part_is_named_twice_and_most_come_in_batches() -> None:
    ahead = window()
    asked = [ahead.after(offset, READ) for offset in range(0, 90 * PART, READ)]
    parts = [part for some in asked for part in some]
    assert parts == list(range(1, parts[-1] + 1))
    sizes = [len(some) for some in asked if some]
    assert set(sizes[1:-1]) == {BATCH_PARTS}


def test_small_reads_at_the_beginning_bring_one_part_ahead_at_most() -> None:
    ahead = window()
    seen = {len(ahead.after(offset, 4096)) for offset in range(0, PART // AHEAD_FACTOR, 4096)}
    assert seen == {0, 1}


def test_a_jump_begins_a_window_of_its_own() -> None:
    ahead = window()
    for offset in range(0, 4 * PART, READ):
        ahead.after(offset, READ)
    assert len(ahead.after(50 * PART, READ)) == 0
    assert list(ahead.after(50 * PART + READ, READ)) == [51, 52]


def test_a_random_reader_is_never_read_ahead_of() -> None:
    ahead = window()
    assert all(len(ahead.after(at * PART, READ)) == 0 for at in (7, 3, 90, 12, 55, 1))


def test_reads_that_arrive_a_little_out_of_order_are_sequential() -> None:
    ahead, start = window(), 50 * PART
    ahead.after(start, READ)
    assert list(ahead.after(start + 2 * READ, READ)) == [51, 52]
    assert len(ahead.after(start + READ, READ)) == 0
    assert list(ahead.after(start + 4 * READ, READ)) == [53, 54, 55, 56]
    assert len(ahead.after(start + 3 * READ, READ)) == 0


def test_several_threads_that_read_on_in_one_file_are_all_read_ahead_of() -> None:
    ahead = window(1000)
    starts = [number * 50 * PART for number in range(1, STREAMS_MAX + 1)]
    for start in starts:
        assert len(ahead.after(start, READ)) == 0
    asked: dict[int, list[int]] = {start: [] for start in starts}
    for step in range(1, 9 * PART // READ):
        for start in starts:
            asked[start] += ahead.after(start + step * READ, READ)
    for start, parts in asked.items():
        first = start // PART
        assert parts == list(range(first + 1, parts[-1] + 1))
        assert parts[-1] >= first + 8 + BATCH_PARTS


def test_a_window_of_nothing_brings_nothing() -> None:
    ahead = ReadAhead(PART, 100 * PART, 0)
    assert all(len(ahead.after(offset, READ)) == 0 for offset in range(0, 4 * PART, READ))


reads = st.lists(st.tuples(st.integers(0, 50), st.integers(1, 40)), max_size=60)


@given(st.integers(1, 10), st.integers(1, 40), st.integers(0, 60), reads)
def test_the_parts_ahead_are_in_the_file_past_the_read_and_few(
    part_size: int, file_size: int, window_bytes: int, asked: list[tuple[int, int]]
) -> None:
    ahead = ReadAhead(part_size, file_size, window_bytes)
    for offset, size in asked:
        if offset >= file_size:
            continue
        parts = ahead.after(offset, size)
        assert len(parts) * part_size < window_bytes + part_size
        if parts:
            assert parts[0] * part_size >= min(offset + size, file_size)
            assert parts[-1] * part_size < file_size
    assert NEAR_BYTES >= 1
