"""What the server promises in /openapi.json, held against everything that schemathesis can think of."""

import json

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from asked_server import SMALL, photos, running
from isinglass.app.answers import MatchAnswer
from isinglass.app.choices import OPTIONS

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
FEW = settings(max_examples=8, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
OPERATIONS = [
    ("/match", "POST"),
    ("/jobs", "POST"),
    ("/jobs/{job_id}", "GET"),
    ("/jobs/{job_id}", "DELETE"),
    ("/jobs/{job_id}/result", "GET"),
    ("/jobs/{job_id}/result.json", "GET"),
    ("/jobs/{job_id}/result.npz", "GET"),
    ("/choices", "GET"),
    ("/health", "GET"),
]


@pytest.fixture(scope="module")
def server():
    with running() as client:
        yield client


@pytest.fixture(scope="module")
def schema(server):
    return schemathesis.openapi.from_url(server.address + "/openapi.json")


def test_the_schema_names_what_there_is(server):
    found = server.get("/openapi.json").json()
    assert {(path, method.upper()) for path, item in found["paths"].items() for method in item} == set(OPERATIONS)
    body = found["paths"]["/match"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert body["required"] == ["image0", "image1"]
    assert body["additionalProperties"] is False
    assert body["properties"]["max_keypoints"]["maximum"] == 4096
    assert "null" not in json.dumps(body)


@pytest.mark.parametrize("mode", ["positive", "negative"])
@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_whatever_comes_is_answered_as_the_schema_says(schema, path, method, mode):
    operation = schema[path][method]
    wanted = GenerationMode.POSITIVE if mode == "positive" else GenerationMode.NEGATIVE
    answered = []
    if wanted is GenerationMode.NEGATIVE and path in ("/choices", "/health"):
        return  # nothing of theirs can be wrong

    @FEW
    @given(case=operation.as_strategy(generation_mode=wanted))
    def ask(case):
        response = case.call(timeout=30)
        more = [negative_data_rejection] if wanted is GenerationMode.NEGATIVE and method == "POST" else []
        case.validate_response(response, checks=[*CHECKS, *more])
        answered.append(response.status_code)

    ask()
    assert answered
    assert all(status < 500 for status in answered)


def test_real_photos_with_whatever_fields_are_matched_or_refused_in_words(server, schema):
    """The options that cost time are small here; all others are as they come."""
    statuses = []

    @settings(FEW, max_examples=12)
    @given(case=schema["/match"]["POST"].as_strategy(generation_mode=GenerationMode.POSITIVE))
    def ask(case):
        free = ("geometry", *sorted(set(OPTIONS) - set(SMALL)))
        fields = {name: value for name, value in case.body.items() if name in free}
        response = server.match(photos(), **{**fields, **SMALL, "matcher": case.body.get("matcher", SMALL["matcher"])})
        statuses.append(response.status_code)
        case.validate_response(_as_called(response), checks=CHECKS)
        if response.status_code == 200:
            MatchAnswer.model_validate(response.json())
        else:
            assert response.status_code == 422
            assert len(response.json()["detail"]) > 20

    ask()
    assert 200 in statuses


def _as_called(response):
    return schemathesis.Response.from_requests(response, verify=True)
