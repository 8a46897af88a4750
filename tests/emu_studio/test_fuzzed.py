"""Whatever is sent to the JSON interface, by its own schema and against it, the answer is one that the schema names."""

from pathlib import Path

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance

from emu_studio.access import Claim
from emu_studio.app import COOKIE, make_app
from emu_studio.ballots import verify_chain
from emu_studio.people import find_by_token, invite
from emu_studio.rounds import list_rounds
from emu_studio.serve import open_studio
from tests.emu_studio.served import open_pictures

pytestmark = pytest.mark.slow
QUESTIONS = ("generalist", "specialist", "captions", "appeal", "faithfulness")


@pytest.mark.parametrize("is_lead", [False, True])
def test_no_request_breaks_the_server_or_the_chain(tmp_path: Path, is_lead: bool) -> None:
    roles = ("generalist", "lead")
    for question in QUESTIONS:
        open_pictures(tmp_path / "data", question, 6, roles=roles)
    studio = open_studio(tmp_path / "data")
    app = make_app(studio)
    _, token = invite(studio.database, "Anna", "lead" if is_lead else "generalist")
    person = find_by_token(studio.database, token)
    assert person is not None
    client = TestClient(app)
    client.get(f"/enter/{token}")
    cookie, csrf = client.cookies[COOKIE], studio.csrf(Claim(person.id, person.pseudonym))
    for question in QUESTIONS:
        assert client.post(f"/api/rounds/{question}/consent", headers={"X-CSRF-Token": csrf}).status_code == 200
    document = app.openapi()
    names = {"schema": {"type": "string", "enum": [*QUESTIONS, "none"]}}
    for operations in document["paths"].values():  # else hardly any request would meet a round
        for operation in operations.values():
            for parameter in operation.get("parameters", []):
                parameter.update(names if parameter["name"] == "name" else {})
    app.get("/schema", include_in_schema=False)(lambda: document)
    num = 0
    for found in schemathesis.openapi.from_asgi("/schema", app).get_all_operations():

        @settings(
            max_examples=40, deadline=None, suppress_health_check=[*HealthCheck.__members__.values()], database=None
        )
        @given(case=found.ok().as_strategy())  # pyrefly: ignore
        def check(case: schemathesis.Case) -> None:
            answer = case.call(cookies={COOKIE: cookie}, headers={"X-CSRF-Token": csrf})
            case.validate_response(answer, checks=[not_a_server_error, response_schema_conformance])
            assert answer.status_code in (200, 400, 403, 404, 405, 409, 413, 422), answer.text

        check()
        num += 1
    assert num >= 3
    for round_ in list_rounds(studio.database):
        assert verify_chain(studio.database, round_.id) == []
    studio.database.close()
