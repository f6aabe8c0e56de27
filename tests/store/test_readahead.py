"""The window of a reader. Pure."""

from hypothesis import given
from hypothesis import strategies as st

from modelfs.store.readahead import NEAR_BYTES, WINDOW_MAX, WINDOW_START, ReadAhead

PART = 8 << 20
READ = 1 << 20


def test_the_first_read_brings_nothing_ahead() -> None:
    assert len(ReadAhead(PART, 100 * PART).after(0, READ)) == 0


def test_the_window_of_a_sequential_reader_doubles_up_to_a_bound() -> None:
    ahead, seen = ReadAhead(PART, 100 * PART), []
    for offset in range(0, 12 * PART, PART):
        seen.append(len(ahead.after(offset, PART)))
    assert seen[:5] == [0, WINDOW_START, 2, 4, 8]
    assert max(seen) == WINDOW_MAX


def test_small_reads_inside_a_part_do_not_grow_the_window() -> None:
    ahead = ReadAhead(PART, 100 * PART)
    seen = {len(ahead.after(offset, 4096)) for offset in range(0, PART // 2, 4096)}
    assert seen == {0, WINDOW_START}


def test_a_jump_closes_the_window() -> None:
    ahead = ReadAhead(PART, 100 * PART)
    for offset in range(0, 4 * PART, PART):
        ahead.after(offset, PART)
    assert len(ahead.after(50 * PART, READ)) == 0
    assert len(ahead.after(50 * PART + READ, READ)) == WINDOW_START


def test_a_random_reader_is_never_read_ahead_of() -> None:
    ahead = ReadAhead(PART, 100 * PART)
    assert all(len(ahead.after(at * PART, READ)) == 0 for at in (7, 3, 90, 12, 55, 1))


def test_reads_that_arrive_a_little_out_of_order_are_sequential() -> None:
    ahead = ReadAhead(PART, 100 * PART)
    ahead.after(0, READ)
    assert len(ahead.after(2 * READ, READ)) == WINDOW_START
    assert len(ahead.after(READ, READ)) == WINDOW_START


reads = st.lists(st.tuples(st.integers(0, 50), st.integers(1, 40)), max_size=60)


@given(st.integers(1, 10), st.integers(1, 40), reads)
def test_the_parts_ahead_are_in_the_file_past_the_read_and_few(
    part_size: int, file_size: int, asked: list[tuple[int, int]]
) -> None:
    ahead = ReadAhead(part_size, file_size)
    for offset, size in asked:
        if offset >= file_size:
            continue
        parts = ahead.after(offset, size)
        assert len(parts) <= WINDOW_MAX
        if parts:
            assert parts[0] * part_size >= min(offset + size, file_size)
            assert parts[-1] * part_size < file_size
    assert NEAR_BYTES >= 1
