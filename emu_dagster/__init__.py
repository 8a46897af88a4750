"""The only code that knows Dagster, MLflow and DVC: assets, resources, reports and the `emu` command."""
