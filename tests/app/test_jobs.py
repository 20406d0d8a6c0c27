"""The queue: first come, first served, cancelled at once or before the next step, bounded in every way; and models."""

import gc
import threading
import time
import weakref

import pytest

from isinglass.app.jobs import Cancelled, Jobs, Work, status_of
from isinglass.app.log import message_of
from isinglass.app.pipelines import Pipelines
from isinglass.app.settings import Limits
from isinglass.app.uploads import Refused
from isinglass.errors import InputError, WeightsError
from isinglass.options import Options

LIMITS = Limits(waiting=4, waiting_bytes=100, results=3, results_bytes=1000)


@pytest.fixture
def jobs():
    made = Jobs(LIMITS)
    yield made
    made.close()


class Gate:
    """Work that waits at its first step until it is let through."""

    def __init__(self):
        self.reached, self.open, self.left = threading.Event(), threading.Event(), []

    def work(self, name="gate", keep=True, held=0):
        def run(tell):
            tell("waiting at the gate")
            self.reached.set()
            assert self.open.wait(20)
            tell("after the gate")
            self.left.append(name)
            return {"payload.json": name.encode()}

        return Work(kind=name, run=run, steps=4, keep=keep, held=held)


def instant(content=b"x", keep=True):
    return Work(kind="instant", run=lambda tell: {"payload.json": content}, keep=keep)


def ended(job):
    """How it ended: its result, or the error."""
    return job.ended.exception(timeout=20) or job.ended.result()


def eventually(true, timeout_s=20):
    end = time.monotonic() + timeout_s
    while not true() and time.monotonic() < end:
        time.sleep(0.005)
    assert true()


def test_jobs_are_done_in_the_order_they_came(jobs):
    gate, order = Gate(), []
    first = jobs.submit(gate.work())
    others = [jobs.submit(Work(kind=str(i), run=lambda tell, i=i: order.append(i) or {})) for i in range(3)]
    assert gate.reached.wait(20)
    assert [jobs.position(job) for job in (first, *others)] == [0, 1, 2, 3]
    assert first.state == "running"
    assert first.stage == "waiting at the gate"
    assert first.progress == 0.25
    assert [job.state for job in others] == ["queued"] * 3
    gate.open.set()
    for job in (first, *others):
        ended(job)
    assert order == [0, 1, 2]
    assert first.progress == 1
    assert first.result == {"payload.json": b"gate"}


def test_ids_are_long_and_never_the_same(jobs):
    ids = set()
    for _ in range(50):
        job = jobs.submit(instant())
        ended(job)
        ids.add(job.id)
    assert len(ids) == 50
    assert min(map(len, ids)) >= 24


def test_a_waiting_job_is_cancelled_at_once(jobs):
    gate = Gate()
    first, second = jobs.submit(gate.work("first")), jobs.submit(gate.work("second"))
    assert gate.reached.wait(20)
    jobs.cancel(second)
    assert second.state == "cancelled"
    assert isinstance(ended(second), Cancelled)
    gate.open.set()
    ended(first)
    assert gate.left == ["first"]
    jobs.cancel(first)
    assert first.state == "done"


def test_a_running_job_is_cancelled_before_its_next_step(jobs):
    gate = Gate()
    job = jobs.submit(gate.work())
    assert gate.reached.wait(20)
    jobs.cancel(job)
    gate.open.set()
    assert isinstance(ended(job), Cancelled)
    assert job.state == "cancelled"
    assert gate.left == []
    assert job.result == {}


def test_a_job_that_is_cancelled_in_its_last_step_has_no_result(jobs):
    reached, go = threading.Event(), threading.Event()

    def run(tell):
        reached.set()
        assert go.wait(20)
        return {"payload.json": b"x"}

    job = jobs.submit(Work(kind="deaf", run=run))
    assert reached.wait(20)
    jobs.cancel(job)
    go.set()
    assert isinstance(ended(job), Cancelled)
    assert job.result == {}


def test_too_many_jobs_are_refused(jobs):
    gate = Gate()
    for _ in range(LIMITS.waiting):
        jobs.submit(gate.work())
    with pytest.raises(Refused, match="4 jobs wait") as refused:
        jobs.submit(gate.work())
    assert refused.value.status == 503
    with pytest.raises(Refused, match="4 jobs wait"):
        jobs.reserve(1)
    gate.open.set()
    eventually(lambda: not jobs.waiting)
    assert ended(jobs.submit(instant())) == {}


def test_uploads_that_wait_are_bounded_together(jobs):
    gate = Gate()
    jobs.reserve(60)
    job = jobs.submit(gate.work(held=60))
    with pytest.raises(Refused, match="wait already"):
        jobs.reserve(60)
    jobs.reserve(40)
    jobs.release(40)
    gate.open.set()
    ended(job)
    jobs.reserve(LIMITS.waiting_bytes)


def test_results_are_bounded_by_number_and_by_bytes(jobs):
    done = [jobs.submit(instant(bytes([i]))) for i in range(3)]
    for job in done:
        ended(job)
    assert jobs.get(done[0].id).result == {"payload.json": b"\x00"}
    ended(jobs.submit(instant()))
    with pytest.raises(Refused, match="no such job") as refused:
        jobs.get(done[0].id)
    assert refused.value.status == 404
    assert jobs.get(done[1].id) is done[1]
    large = jobs.submit(instant(bytes(5000)))
    ended(large)
    assert jobs.get(large.id) is large
    with pytest.raises(Refused):
        jobs.get(done[2].id)


def test_results_are_forgotten_in_time():
    jobs = Jobs(Limits(keep_s=0.05))
    job = jobs.submit(instant())
    ended(job)
    assert jobs.get(job.id) is job
    time.sleep(0.1)
    with pytest.raises(Refused, match="no such job"):
        jobs.get(job.id)
    jobs.close()


def test_what_is_not_kept_is_in_the_future_alone(jobs):
    job = jobs.submit(instant(keep=False))
    assert ended(job) == {"payload.json": b"x"}
    with pytest.raises(Refused):
        jobs.get(job.id)
    kept = jobs.submit(instant())
    assert ended(kept) == {}
    assert kept.result == {"payload.json": b"x"}


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (Refused("no photo", 415), 415, "no photo"),
        (InputError("bad"), 422, "bad"),
        (WeightsError("gone"), 503, "gone"),
        (KeyError("secret"), 500, "the server failed (KeyError), which is a mistake of Isinglass; its log has more"),
    ],
)
def test_errors_are_told_and_end_nothing(jobs, error, status, message):
    def run(tell):
        raise error

    job = jobs.submit(Work(kind="bad", run=run))
    assert ended(job) is error
    assert job.state == "failed"
    assert status_of(error) == status
    assert message_of(error).startswith(message)
    assert "secret" not in message_of(error)
    assert ended(jobs.submit(instant(keep=False))) == {"payload.json": b"x"}


def test_nothing_of_a_job_stays_but_its_result(jobs):
    class Photo:
        pass

    photo = Photo()
    gone = weakref.ref(photo)

    def run(tell, photo=photo):
        try:
            raise KeyError(photo)
        except KeyError as error:
            raise InputError("bad") from error

    job = jobs.submit(Work(kind="bad", run=run))
    del photo, run
    ended(job)
    ended(jobs.submit(instant()))  # the thread is at something else now
    gc.collect()
    assert gone() is None
    assert job.work is None


def test_calls_of_live_pages_take_turns_with_jobs(jobs):
    gate, order = Gate(), []
    jobs.submit(gate.work())
    assert gate.reached.wait(20)
    futures = [jobs.call(lambda i=i: order.append(f"call {i}")) for i in range(3)]
    waiting = [jobs.submit(Work(kind="j", run=lambda tell, i=i: order.append(f"job {i}") or {})) for i in range(2)]
    gate.open.set()
    for one in futures:
        one.result(timeout=20)
    for job in waiting:
        ended(job)
    assert order == ["call 0", "job 0", "call 1", "job 1", "call 2"]


def test_an_error_of_a_call_is_its_callers(jobs):
    with pytest.raises(InputError, match="bad"):
        jobs.call(lambda: (_ for _ in ()).throw(InputError("bad"))).result(timeout=20)
    assert jobs.call(lambda: 3).result(timeout=20) == 3


def test_closing_cancels_all():
    jobs, gate = Jobs(LIMITS), Gate()
    first, second = jobs.submit(gate.work()), jobs.submit(gate.work())
    assert gate.reached.wait(20)
    call = jobs.call(lambda: None)
    threading.Timer(0.05, gate.open.set).start()
    jobs.close()
    assert isinstance(ended(first), Cancelled)
    assert isinstance(ended(second), Cancelled)
    assert call.cancelled()
    assert gate.left == []
    with pytest.raises(Refused):
        jobs.submit(instant())
    assert jobs.call(lambda: None).cancelled()


def test_few_models_stay_loaded():
    pipelines, told = Pipelines(2), []
    options = [Options(extractor="rootsift", matcher="nearest", device="cpu", max_keypoints=n) for n in (10, 20, 30)]
    first = pipelines.of(options[0], told.append)
    assert told == ["loading models"]
    assert first.loading_ms > 0
    again = pipelines.of(Options(**{**vars(options[0]), "resize": 99, "rotation": "auto"}), told.append)
    assert again.matcher is first.matcher
    assert again.loading_ms == 0
    assert again.options.resize == 99
    assert len(told) == 1
    for one in options[1:]:
        pipelines.of(one, told.append)
    assert len(pipelines) == 2
    assert len(told) == 3
    pipelines.of(options[0], told.append)
    assert len(told) == 4
