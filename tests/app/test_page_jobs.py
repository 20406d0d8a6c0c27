"""Users that wait for each other, and work that is cancelled, in real browsers."""

import threading

import pytest

from asked_server import drawing, encoded, photos
from isinglass.app.jobs import Work
from page_of_app import choose, ended, opened, payload, trouble, until


@pytest.fixture
def gate(site):
    """Keeps the server's one worker busy until it is opened."""
    reached, opening = threading.Event(), threading.Event()

    def work(tell):
        reached.set()
        assert opening.wait(60)
        return {}

    site.home.jobs.submit(Work(kind="gate", run=work, keep=False))
    assert reached.wait(20)
    yield opening
    opening.set()
    until(lambda: site.home.jobs.waiting == 0, 60)


def progress(page):
    return page.locator("#progress").inner_text()


def test_two_users_queue_and_do_not_mix(visit, site, gate):
    first, second = (opened(visit(), site) for _ in range(2))
    choose(first, ("a0.png", photos()[0]), ("a1.png", photos()[1]))
    choose(second, ("b0.png", photos(3)[0]), ("b1.png", photos(3)[1]))
    first.locator("#run").click()
    until(lambda: "1 job is before it" in progress(first))
    second.locator("#run").click()
    until(lambda: "2 jobs are before it" in progress(second))
    assert first.locator("#run").is_disabled()
    gate.set()
    for page in (first, second):
        ended(page)
        assert trouble(page) == ""
    found, other = payload(first), payload(second)
    assert (found["names"], other["names"]) == (["a0.png", "a1.png"], ["b0.png", "b1.png"])
    assert min(len(found["pairs"]), len(other["pairs"])) > 60
    assert found["pairs"] != other["pairs"]
    assert progress(first) == progress(second) == ""


@pytest.mark.parametrize("how", ["button", "key"])
def test_a_job_that_waits_is_cancelled(visit, site, gate, how):
    page = opened(visit(), site)
    choose(page, *photos())
    page.locator("#run").click()
    until(lambda: "before it" in progress(page))
    assert site.home.jobs.waiting == 2
    if how == "button":
        page.locator("#cancel").click()
    else:
        page.locator("body").press("Escape")
    ended(page)
    assert (progress(page), trouble(page)) == ("", "")
    assert page.locator("#cancel").is_hidden()
    assert site.home.jobs.waiting == 1  # the gate
    assert page.locator("#panel-match .readout").count() == 0


def test_a_page_that_is_left_cancels_its_job(visit, site, gate):
    page = opened(visit(), site)
    choose(page, *photos())
    page.locator("#run").click()
    until(lambda: site.home.jobs.waiting == 2 and "before it" in progress(page))
    page.goto("about:blank")
    until(lambda: site.home.jobs.waiting == 1)


def test_a_job_that_runs_is_cancelled(visit, site, monkeypatch):
    from isinglass.app import server

    reached, stopped = threading.Event(), threading.Event()

    def endless(task, pipelines, tell):
        try:
            while True:
                reached.set()
                tell("extracting")
                stopped.wait(0.02)
        finally:
            stopped.set()

    monkeypatch.setattr(server, "run", endless)
    page = opened(visit(), site)
    choose(page, *photos())
    page.locator("#run").click()
    assert reached.wait(20)
    until(lambda: "Extracting" in progress(page))
    page.locator("#cancel").click()
    ended(page)
    assert stopped.wait(20)
    assert (progress(page), trouble(page)) == ("", "")


def test_a_failure_of_the_server_is_told(visit, site, monkeypatch):
    from isinglass.app import server

    def broken(task, pipelines, tell):
        raise RuntimeError("secret details")

    monkeypatch.setattr(server, "run", broken)
    page = opened(visit(), site)
    choose(page, *photos())
    page.locator("#run").click()
    ended(page)
    assert "server failed" in trouble(page)
    assert "secret" not in trouble(page)


def test_a_full_queue_is_told(visit, site, gate):
    limit = site.home.settings.limits.waiting
    task = [site.submit([encoded(drawing())] * 2) for _ in range(limit - 1)]
    page = opened(visit(), site)
    choose(page, *photos())
    page.locator("#run").click()
    ended(page)
    assert "busy" in trouble(page)
    for one in task:
        site.delete(f"/jobs/{one}")
