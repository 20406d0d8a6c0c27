"""Parts on threads of their own: all of them, in the caller's modes, without harm to the caller or to each other."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from isinglass.kernels import threads
from isinglass.kernels.threads import for_each, in_team, team_size


@pytest.fixture(params=[1, 2, 3])
def count(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_every_part_is_done_once_on_all_threads(count):
    @in_team
    def work():
        done, where = [], set()

        def part(i):
            done.append(i)
            where.add(threading.get_ident())
            time.sleep(0.01)

        for_each(part, range(20))
        return sorted(done), len(where), team_size()

    done, used, size = work()
    assert done == list(range(20)) and used == size == count
    assert torch.get_num_threads() == count  # the caller's own


def test_torchs_threads_are_shared_out(count, monkeypatch):
    monkeypatch.setattr(threads, "MOST", 2)
    threads._team_of.cache_clear()
    seen = []
    in_team(lambda: for_each(lambda _: (seen.append(torch.get_num_threads()), time.sleep(0.02)), range(4)))()
    threads._team_of.cache_clear()
    assert set(seen) == {1}
    fresh = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    fresh.start()
    fresh.join()
    assert seen[-1] == count  # new threads elsewhere are not concerned


def test_modes_are_the_callers(count):
    modes = []
    work = in_team(
        lambda: for_each(lambda _: modes.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled())), range(6))
    )
    for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad):
        with mode():
            work()
            expected = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
        assert modes == [expected] * 6
        modes.clear()


def test_without_a_team_parts_are_done_in_order_here():
    done = []
    for_each(lambda i: done.append((i, threading.get_ident())), range(3))
    assert done == [(i, threading.get_ident()) for i in range(3)] and team_size() == 1


def test_what_a_part_raises_arrives_after_the_others_ended(count):
    ended = []

    def part(i):
        if i == 1:
            raise ValueError("part 1")
        time.sleep(0.02)
        ended.append(i)

    with pytest.raises(ValueError, match="part 1"):
        in_team(lambda: for_each(part, range(6)))()
    before = list(ended)
    time.sleep(0.05)
    assert ended == before
    assert in_team(lambda: 7)() == 7  # the team goes on


def test_a_part_may_have_parts(count):
    done = []
    in_team(lambda: for_each(lambda i: for_each(lambda j: done.append((i, j)), range(3)), range(3)))()
    assert sorted(done) == [(i, j) for i in range(3) for j in range(3)]
    assert in_team(in_team(team_size))() == count


def test_many_callers_at_once_do_not_wait_for_each_other_forever(count):
    work = in_team(lambda: sum(_squares(range(30))))

    def _squares(numbers):
        found = []
        for_each(lambda i: found.append(i * i), numbers)
        return found

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda _: work(), range(40))) == [sum(i * i for i in range(30))] * 40
