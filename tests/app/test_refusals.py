"""What the server refuses, over real HTTP: with which status, and in which words."""

import pytest
import requests
from PIL import Image

from asked_server import SMALL, bad_files, encoded, photos, running
from isinglass.weights import records


@pytest.fixture(scope="module")
def server():
    with running() as client:
        yield client


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", bad_files())
def test_bad_files_are_refused_in_words(server, name):
    content, status, word = bad_files()[name]
    for pair in ([content, photos()[1]], [photos()[0], content]):
        answer = server.match(pair)
        assert answer.status_code == status, answer.text
        assert word in answer.json()["detail"]


def test_a_damaged_file_fails_its_job_in_words(server):
    job = server.submit([bad_files()["cut off"][0], photos()[1]])
    found = server.wait(job)
    assert found["state"] == "failed"
    assert "damaged" in found["error"]
    answer = server.get(f"/jobs/{job}/result")
    assert answer.status_code == 409
    assert "failed" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"colour": "red"}, "'colour' is not known"),
        ({"max_keypoints": "4097"}, "4096"),
        ({"max_keypoints": "many"}, "max_keypoints is 'many'"),
        ({"resize": "63"}, "64"),
        ({"resize": "1e9"}, "resize"),
        ({"filter_threshold": "nan"}, "filter_threshold"),
        ({"min_distance": "inf"}, "min_distance"),
        ({"extractor": "disk"}, "made for features of rootsift"),
        ({"matcher": "/etc/passwd"}, "matcher is '/etc/passwd'"),
        ({"matcher": "nearest", "filter_threshold": "0.5"}, "filter_threshold is for"),
        ({"ratio": "0.8"}, "ratio is for"),
        ({"geometry": "round"}, "geometry is 'round'"),
        ({"rotation": "auto "}, "rotation"),
        ({"device": "cuda"}, "'device' is not known"),
        ({"accept_licence": "true"}, "'accept_licence' is not known"),
        ({"tile": "64"}, "'tile' is not known"),
    ],
)
def test_wrong_fields_are_refused_in_words(server, fields, word):
    answer = server.match(photos(), **fields)
    if answer.status_code == 200:  # the matcher says so once it is loaded
        raise AssertionError(answer.text[:100])
    assert answer.status_code == 422
    assert word in answer.json()["detail"]


def test_weights_of_an_unaccepted_licence_are_refused(server, monkeypatch):
    monkeypatch.delenv("ISINGLASS_ACCEPT_LICENCES", raising=False)
    (closed,) = [one.name for one in records("SuperPoint") if not one.commercial_use]
    answer = server.match(photos(), extractor=closed, matcher="nearest")
    assert answer.status_code == 422
    assert "licence" in answer.json()["detail"]
    listed = {one["name"]: one for one in server.get("/choices").json()["extractors"]}
    assert listed[closed]["available"] is False


def test_forms_that_are_none_are_refused_in_words(server):
    post = server.post
    assert "image1 did not come" in post("/match", [photos()[0]]).json()["detail"]
    assert "image0 and image1" in post("/match", []).json()["detail"]
    twice = [("image0", photos()[0]), ("image0", photos()[0]), ("image1", photos()[1])]
    answer = requests.post(server.address + "/match", files=twice, timeout=30)
    assert answer.status_code == 422
    assert "twice" in answer.json()["detail"]
    as_text = requests.post(server.address + "/match", data={"image0": "a", "image1": "b"}, timeout=30)
    assert as_text.status_code == 422
    assert "expected a file" in as_text.json()["detail"]
    as_file = requests.post(server.address + "/match", files={"matcher": b"nearest"}, timeout=30)
    assert as_file.status_code == 422
    as_json = requests.post(server.address + "/match", json={"image0": "a"}, timeout=30)
    assert as_json.status_code == 422
    broken = {"content-type": "multipart/form-data; boundary=x"}
    answer = requests.post(server.address + "/match", data=b"--x\r\nnothing", headers=broken, timeout=30)
    assert answer.status_code in (400, 422)
    assert answer.json()["detail"]


def test_a_mask_of_another_size_is_refused(server):
    answer = server.post("/match", photos(), [encoded(Image.new("L", (10, 10))), None])
    assert answer.status_code == 422
    assert "10 x 10" in answer.json()["detail"]


def test_options_of_a_second_pipeline_need_a_comparison(server):
    answer = server.post("/jobs", photos(), fields={**SMALL, "other_matcher": "nearest"})
    assert answer.status_code == 422
    assert "other_matcher" in answer.json()["detail"]


def test_jobs_that_are_none(server):
    for path in ("/jobs/abc", "/jobs/abc/result", "/jobs/abc/result.npz"):
        assert server.get(path).status_code == 404
    assert server.delete("/jobs/abc").status_code == 404
    assert server.get("/jobs/" + "a" * 65).status_code == 422
