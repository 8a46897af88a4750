"""`python -m emu_dagster.cli`, where the command `emu` is not installed."""

from emu_dagster.cli import main

main()
