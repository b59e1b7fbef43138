"""The turn of the base: fair, entered again by its owner, handed on by who gives up, and as fast as it was measured."""

import threading
import time

import pytest

from genre.engine.turn import ForwardTurn


def work(turn, name, order):
    with turn:
        order.append(name)


def waiting(turn, count):
    end = time.monotonic() + 30
    while len(turn._waiting) < count:
        assert time.monotonic() < end
        time.sleep(0.001)


def test_threads_have_the_turn_in_the_order_in_which_they_came():
    turn, order, threads = ForwardTurn(), [], []
    with turn:
        for number in range(8):
            threads.append(threading.Thread(target=work, args=(turn, number, order)))
            threads[-1].start()
            waiting(turn, number + 1)
    for thread in threads:
        thread.join()
    assert order == list(range(8))


def test_who_takes_it_again_and_again_goes_behind_who_waits():
    turn, order = ForwardTurn(), []
    with turn:
        other = threading.Thread(target=work, args=(turn, "other", order))
        other.start()
        waiting(turn, 1)
    with turn:  # without any pause: a plain lock would be had again before the other is awake
        order.append("again")
    other.join()
    assert order == ["other", "again"]


def test_its_owner_enters_it_again():
    turn, order = ForwardTurn(), []
    with turn:
        with turn:
            pass
        other = threading.Thread(target=work, args=(turn, "other", order))
        other.start()
        waiting(turn, 1)
        assert order == []
    other.join()
    with turn:
        assert order == ["other"]


@pytest.mark.parametrize("handed", [False, True])
def test_who_gives_up_waiting_leaves_the_queue_or_hands_on(handed):
    turn, order = ForwardTurn(), []
    gate = threading.Lock()
    with turn:
        turn._waiting.append((0, gate))
        gate.acquire()
        other = threading.Thread(target=work, args=(turn, "other", order))
        other.start()
        waiting(turn, 2)
        if not handed:
            turn._give_up(0, gate)
    if handed:
        assert gate.acquire(blocking=False)  # it is the turn of the one who gives up
        turn._give_up(0, gate)
    other.join()
    assert order == ["other"] and turn._owner is None


def test_tokens_of_some_seconds_follow_from_the_passes_before():
    turn = ForwardTurn()
    assert turn.tokens_in(0.1, least=64, most=8192) == 8192
    for _ in range(50):
        turn.record(1000, 0.5)
    assert 199 <= turn.tokens_in(0.1, least=64, most=8192) <= 201
    assert turn.tokens_in(0.001, least=64, most=8192) == 64 and turn.tokens_in(0.001, least=64, most=10) == 10
    for _ in range(50):
        turn.record(1000, 0.001)
    assert turn.tokens_in(0.1, least=64, most=8192) == 8192
