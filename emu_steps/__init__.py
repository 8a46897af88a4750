"""What each asset does: params, paths and libraries, no orchestrator. `emu_dagster/defs/` calls what is here."""
