"""What the assets hold in their hands: MLflow's record, DVC's record, and the process that trains."""

from dagster._core.errors import DagsterExecutionInterruptedError

# What an interrupt looks like inside a step: Dagster raises its own error in the main thread.
INTERRUPTS = (KeyboardInterrupt, DagsterExecutionInterruptedError)
