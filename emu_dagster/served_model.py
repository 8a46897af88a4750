"""What MLflow serves: prompts in, PNG pictures out (base64). Logged "from code"; nothing is pickled."""

import base64
import io
from typing import Any

import mlflow
import pydantic
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModelContext

MAX_SEED = 2**63 - 1  # torch's largest
MAX_STEPS = 1000  # length of the noise schedule with which our models and Stable Diffusion's are trained
MAX_CHARACTERS = 2000  # of a prompt, far more than an encoder reads; chosen here
MAX_GUIDANCE = 100.0  # far more than gives usable pictures; chosen here


class Request(pydantic.BaseModel):
    """A request for one picture. num_inference_steps: denoising steps. guidance_scale: 1 or less means no guidance."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    prompt: str = pydantic.Field(min_length=1, max_length=MAX_CHARACTERS)
    seed: int = pydantic.Field(0, ge=0, le=MAX_SEED)
    num_inference_steps: int = pydantic.Field(25, ge=1, le=MAX_STEPS)
    guidance_scale: float = pydantic.Field(3.0, ge=0, le=MAX_GUIDANCE, allow_inf_nan=False)


def read_requests(given: list[dict[str, Any]]) -> list[Request]:
    """Check the requests and return them. Raises MlflowException, which the server returns as status 400, with one line
    that says what is wrong in which request.
    """
    if not given:
        raise _refused("the list of requests is empty; give one or more, each with a prompt")
    read = []
    for number, one in enumerate(given):
        try:
            read.append(Request.model_validate(one))
        except pydantic.ValidationError as error:
            found = error.errors()[0]
            name = ".".join(str(part) for part in found["loc"])
            if found["type"] == "extra_forbidden":
                reason = f"{name!r} is unknown; a request has {', '.join(Request.model_fields)}"
            elif found["type"] == "missing":
                reason = f"{name} is missing"
            else:
                reason = f"{name} is {found['input']!r}: {found['msg'][0].lower()}{found['msg'][1:]}"
            raise _refused(f"request {number}: {reason}") from None
    return read


def _refused(reason: str) -> MlflowException:
    return MlflowException(reason, error_code=INVALID_PARAMETER_VALUE)


class ServedPipeline(mlflow.pyfunc.PythonModel):
    """The pyfunc that MLflow serves for a registered version: one picture per request."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the pipeline from the version's artifacts; called once by MLflow, before the first request."""
        from emu_models.checkpoints import load_pipeline

        self.pipeline = load_pipeline(context.artifacts["pipeline"])
        self.pipeline.set_progress_bar_config(disable=True)

    def predict(self, model_input: list[dict[str, Any]]) -> list[str]:  # pyrefly: ignore
        """Draw a PNG, returned as base64, for each request. Raises MlflowException as `read_requests` does.

        It takes plain mappings instead of list[Request], because MLflow would check those itself and answer with a page
        of pydantic's messages.
        """
        from emu_models.drawing import draw

        pictures = []
        for request in read_requests(model_input):
            (image,) = draw(
                self.pipeline, [request.prompt], [request.seed], request.num_inference_steps, request.guidance_scale
            )
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            pictures.append(base64.b64encode(buffer.getvalue()).decode())
        return pictures


mlflow.models.set_model(ServedPipeline())
