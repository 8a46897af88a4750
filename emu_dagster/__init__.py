"""The only code that knows Dagster, MLflow and DVC: assets, resources, records and the `emu` command."""
