"""A project's surroundings: environment variables, other processes, signals, disks."""
