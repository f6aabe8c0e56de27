"""Threads, single flights, and waiting for what moves."""

import logging
import threading
from functools import partial

import pytest
import trio

from modelfs.concurrency import Background, Progress, SingleFlight, Threads, wait_while_moving
from modelfs.errors import NotFound, RegistryUnavailable
from tests.trio_tests import trio_test, until


@trio_test
async def test_threads_of_one_kind_are_bounded_and_leave_those_of_another_alone() -> None:
    slow, quick = Threads(2), Threads(1)
    gate, running = threading.Event(), []

    def wait() -> None:
        running.append(1)
        gate.wait(10)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(slow.run, wait)
        await until(lambda: len(running) == 2)
        assert await quick.run(lambda: "at once") == "at once"
        assert len(running) == 2
        gate.set()
    assert len(running) == 5


@trio_test
async def test_one_thread_may_hold_the_places_of_several() -> None:
    threads = Threads(4)
    gate, running = threading.Event(), []

    def wait() -> None:
        running.append(1)
        gate.wait(10)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(threads.run_or_leave, wait, places=3))
        await until(lambda: len(running) == 1)
        for _ in range(3):
            nursery.start_soon(threads.run, wait)
        await until(lambda: len(running) == 2)
        await trio.sleep(0.02)
        assert len(running) == 2
        gate.set()
    assert len(running) == 4


@trio_test
async def test_two_that_want_several_places_do_not_wait_for_each_other() -> None:
    threads, done = Threads(4), []

    async def wide(count: int) -> None:
        done.append(await threads.run_or_leave(lambda: count, places=count))

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                for count in (1, 3, 4):
                    nursery.start_soon(wide, count)
                    nursery.start_soon(threads.run, lambda: None)
    assert len(done) == 60


@trio_test
async def test_a_caller_that_leaves_gives_the_places_back_that_it_had() -> None:
    threads, gate = Threads(3), threading.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(threads.run, gate.wait, 10)
        with trio.move_on_after(0.02) as scope:
            await threads.run_or_leave(lambda: None, places=3)  # there are only two
        assert scope.cancelled_caught
        assert await threads.run_or_leave(lambda: "done", places=2) == "done"
        gate.set()


@trio_test
async def test_a_caller_that_leaves_its_thread_goes_at_once() -> None:
    gate = threading.Event()
    with trio.move_on_after(0.01) as scope:
        await Threads(1).run_or_leave(gate.wait, 10)
    assert scope.cancelled_caught
    gate.set()


@trio_test
async def test_the_same_work_is_done_once_for_all_who_ask() -> None:
    async with trio.open_nursery() as nursery:
        flights: SingleFlight[str, int] = SingleFlight(Background(nursery))
        done: list[int] = []
        answers: list[int] = []

        async def work() -> int:
            await trio.sleep(0.01)
            done.append(1)
            return len(done)

        async def ask() -> None:
            answers.append(await flights.do("key", work))

        async with trio.open_nursery() as callers:
            for _ in range(10):
                callers.start_soon(ask)
        assert (len(done), answers) == (1, [1] * 10)
        assert await flights.do("key", work) == 2  # it is over, so it is done anew


@trio_test
async def test_an_error_reaches_all_who_ask_and_is_forgotten() -> None:
    async with trio.open_nursery() as nursery:
        flights: SingleFlight[str, int] = SingleFlight(Background(nursery))
        caught: list[NotFound] = []

        async def fail() -> int:
            await trio.sleep(0.01)
            raise NotFound("gone")

        async def ask() -> None:
            try:
                await flights.do("key", fail)
            except NotFound as error:
                caught.append(error)

        async with trio.open_nursery() as callers:
            for _ in range(5):
                callers.start_soon(ask)
        assert len(caught) == 5

        async def succeed() -> int:
            return 7

        assert await flights.do("key", succeed) == 7


@trio_test
async def test_a_caller_that_gives_up_does_not_end_the_work_for_others() -> None:
    async with trio.open_nursery() as nursery:
        flights: SingleFlight[str, int] = SingleFlight(Background(nursery))
        gate = trio.Event()

        async def work() -> int:
            await gate.wait()
            return 1

        with trio.move_on_after(0.01) as first:
            await flights.do("key", work)
        assert first.cancelled_caught

        answers: list[int] = []

        async def ask() -> None:
            answers.append(await flights.do("key", work))

        nursery.start_soon(ask)
        await trio.sleep(0.01)
        gate.set()
        await until(lambda: answers == [1])


@trio_test
async def test_what_moves_may_take_long_and_what_stands_still_may_not() -> None:
    done, progress = trio.Event(), Progress()

    async def move() -> None:
        for _ in range(20):
            await trio.sleep(0.02)
            progress(1)
        done.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(move)
        await wait_while_moving(done, progress, 0.2)
    assert progress.bytes == 20
    with pytest.raises(RegistryUnavailable, match="nothing"):
        await wait_while_moving(trio.Event(), progress, 0.02)


@trio_test
async def test_a_background_task_that_fails_is_logged_and_ends_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail() -> None:
        raise ValueError("a bug")

    async def work() -> None:
        worked.set()

    worked = trio.Event()
    with caplog.at_level(logging.ERROR):
        async with trio.open_nursery() as nursery:
            background = Background(nursery)
            background.start_soon(fail, name="what fails")
            background.start_soon(work, name="what works")
    assert worked.is_set()
    assert "what fails" in caplog.text
