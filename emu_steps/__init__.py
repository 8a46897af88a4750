"""What each asset does: params, paths and libraries, but no orchestrator. `emu_dagster/defs/` calls these functions."""
