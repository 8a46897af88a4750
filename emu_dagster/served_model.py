"""What MLflow serves: prompts in, PNG pictures out (base64). Logged "from code"; nothing is pickled."""

import base64
import io

import mlflow
import pydantic
from mlflow.pyfunc.model import PythonModelContext


class Request(pydantic.BaseModel):
    """A request model and not list[str]: with that hint MLflow would silently ignore the seed."""

    prompt: str
    seed: int = 0
    num_inference_steps: int = 25
    guidance_scale: float = 3.0


class ServedPipeline(mlflow.pyfunc.PythonModel):
    def load_context(self, context: PythonModelContext) -> None:
        from emu_models.latent.checkpoints import load_pipeline

        self.pipeline = load_pipeline(context.artifacts["pipeline"])
        self.pipeline.set_progress_bar_config(disable=True)

    def predict(self, model_input: list[Request]) -> list[str]:
        """A PNG in base64 for each request."""
        from emu_models.latent.pipeline import draw

        pictures = []
        for request in model_input:
            (image,) = draw(
                self.pipeline, [request.prompt], [request.seed], request.num_inference_steps, request.guidance_scale
            )
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            pictures.append(base64.b64encode(buffer.getvalue()).decode())
        return pictures


mlflow.models.set_model(ServedPipeline())
