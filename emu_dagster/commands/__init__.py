"""What the `emu` command does, a module per command that is longer than a few lines."""
