"""What MLflow serves: prompts in, PNG pictures out (base64). Logged "from code"; nothing is pickled."""

import base64
import io
from typing import Any

import mlflow
import pydantic
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModelContext

MAX_SEED = 2**63 - 1  # torch's
MAX_STEPS = 1000  # of the noise schedule that ours and Stable Diffusion's models are trained on
MAX_CHARACTERS = 2000  # of a prompt, far beyond what an encoder reads; chosen here
MAX_GUIDANCE = 100.0  # far beyond what gives a picture; chosen here


class Request(pydantic.BaseModel):
    """One picture. num_inference_steps: up to those of the noise schedule. guidance_scale: 1 or less is none."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    prompt: str = pydantic.Field(min_length=1, max_length=MAX_CHARACTERS)
    seed: int = pydantic.Field(0, ge=0, le=MAX_SEED)
    num_inference_steps: int = pydantic.Field(25, ge=1, le=MAX_STEPS)
    guidance_scale: float = pydantic.Field(3.0, ge=0, le=MAX_GUIDANCE, allow_inf_nan=False)


def read_requests(given: list[dict[str, Any]]) -> list[Request]:
    """The requests, checked. MlflowException, which the server answers as 400, says in a line what is wrong where."""
    if not given:
        raise _refused("there is no request; give a list of one or more, each with a prompt")
    read = []
    for number, one in enumerate(given):
        try:
            read.append(Request.model_validate(one))
        except pydantic.ValidationError as error:
            found = error.errors()[0]
            name = ".".join(str(part) for part in found["loc"])
            if found["type"] == "extra_forbidden":
                told = f"there is no {name!r}; a request has {', '.join(Request.model_fields)}"
            elif found["type"] == "missing":
                told = f"{name} is missing"
            else:
                told = f"{name} is {found['input']!r}: {found['msg'][0].lower()}{found['msg'][1:]}"
            raise _refused(f"request {number}: {told}") from None
    return read


def _refused(reason: str) -> MlflowException:
    return MlflowException(reason, error_code=INVALID_PARAMETER_VALUE)


class ServedPipeline(mlflow.pyfunc.PythonModel):
    def load_context(self, context: PythonModelContext) -> None:
        from emu_models.latent.checkpoints import load_pipeline

        self.pipeline = load_pipeline(context.artifacts["pipeline"])
        self.pipeline.set_progress_bar_config(disable=True)

    def predict(self, model_input: list[dict[str, Any]]) -> list[str]:
        """A PNG in base64 for each request. MlflowException as `read_requests`.

        Plain mappings and not list[Request]: MLflow would check those itself, and answer with a page of pydantic's.
        """
        from emu_models.latent.pipeline import draw

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
