"""What the server of a registered model answers: pictures, or 400 with a sentence that says what was wrong."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import mlflow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from emu_dagster import registering
from emu_dagster.served_model import MAX_SEED, MAX_STEPS, Request, read_requests
from tests.checkpoints import make_checkpoint


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """MLflow's own scoring server for a model stored as `registered_model` stores it."""
    from fastapi.testclient import TestClient
    from mlflow.pyfunc import scoring_server

    folder = tmp_path_factory.mktemp("served")
    stored = registering.served_model(make_checkpoint("sd1", folder / "pipeline"))
    mlflow.pyfunc.save_model(folder / "model", **stored)
    app = scoring_server.init(mlflow.pyfunc.load_model(str(folder / "model")))
    return TestClient(app, raise_server_exceptions=False)


def ask(server: Any, inputs: Any) -> Any:
    body = json.dumps({"inputs": inputs})
    return server.post("/invocations", content=body, headers={"Content-Type": "application/json"})


def test_a_request_is_answered_with_a_picture(server: Any):
    asked = [{"prompt": "red", "num_inference_steps": 1, "seed": seed, "guidance_scale": 1} for seed in (1, 1, 2)]
    answer = ask(server, asked)
    assert answer.status_code == 200, answer.text
    pictures = [Image.open(io.BytesIO(base64.b64decode(one))) for one in answer.json()["predictions"]]
    assert {picture.size for picture in pictures} == {(32, 32)}
    assert pictures[0].tobytes() == pictures[1].tobytes() != pictures[2].tobytes()


WRONG = [
    ({"num_inference_steps": -3}, "num_inference_steps is -3: input should be greater than or equal to 1"),
    ({"num_inference_steps": 0}, "num_inference_steps is 0: input should be greater than or equal to 1"),
    ({"num_inference_steps": MAX_STEPS + 1}, "should be less than or equal to 1000"),
    ({"num_inference_steps": 2.5}, "should be a valid integer"),
    ({"num_inference_steps": True}, "should be a valid integer"),
    ({"seed": -1}, "seed is -1"),
    ({"seed": MAX_SEED + 1}, "should be less than or equal to"),
    ({"seed": "7"}, "seed is '7': input should be a valid integer"),
    ({"guidance_scale": float("nan")}, "guidance_scale is nan: input should be a finite number"),
    ({"guidance_scale": -1}, "guidance_scale is -1"),
    ({"prompt": ""}, "prompt is '': string should have at least 1 character"),
    ({"prompt": None}, "prompt is None: input should be a valid string"),
    ({"steps": 3}, "'steps' is unknown; a request has prompt, seed, num_inference_steps, guidance_scale"),
]


@pytest.mark.parametrize(("change", "reported"), WRONG)
def test_what_cannot_be_drawn_is_400_and_one_sentence(server: Any, change: dict[str, Any], reported: str):
    answer = ask(server, [{"prompt": "red"}, {"prompt": "red", **change}])
    assert answer.status_code == 400
    message = answer.json()["message"]
    assert message.splitlines()[-1].startswith("Error: request 1: ") and reported in message
    assert "Traceback" not in answer.text and "pydantic" not in answer.text


@pytest.mark.parametrize("inputs", [[], [{}], [{"seed": 1}], ["red"], "red", {"prompt": "red"}, [[1]], 3])
def test_anything_but_a_list_of_requests_is_400(server: Any, inputs: Any):
    answer = ask(server, inputs)
    assert answer.status_code == 400 and "Traceback" not in answer.text


@given(
    st.dictionaries(
        st.sampled_from([*Request.model_fields, "steps"]),
        st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "a", "a cat"]),
    )
)
@settings(max_examples=200)
def test_a_request_is_used_as_it_is_or_refused_with_a_sentence(given: dict[str, Any]):
    try:
        (read,) = read_requests([given])
    except mlflow.MlflowException as error:
        assert error.error_code == "INVALID_PARAMETER_VALUE" and error.message.startswith("request 0: ")
    else:
        assert {name: getattr(read, name) for name in given} == given
        assert read.prompt and 1 <= read.num_inference_steps <= MAX_STEPS and 0 <= read.seed <= MAX_SEED


def test_as_many_steps_may_be_requested_as_the_schedule_has():
    from emu_models.diffusion.schedule import build_scheduler

    assert build_scheduler().config["num_train_timesteps"] == MAX_STEPS


def test_the_served_file_imports_nothing_of_ours_at_its_top():
    """A copy of it is run, with only emu_models and emu_data beside it."""
    source = Path(registering.__file__).with_name("served_model.py").read_text()
    assert "emu_dagster" not in source and "emu_steps" not in source
