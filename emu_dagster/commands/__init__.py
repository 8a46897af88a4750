"""What the `emu` command does: one module for each command that is longer than a few lines."""
