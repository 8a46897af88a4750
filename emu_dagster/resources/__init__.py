"""What the assets work with: MLflow's record, DVC's record, and the process that trains."""

from dagster._core.errors import DagsterExecutionInterruptedError

# The errors that an interrupt raises inside a step: Dagster raises its own in the main thread.
INTERRUPTS = (KeyboardInterrupt, DagsterExecutionInterruptedError)
