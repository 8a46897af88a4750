"""What is around a project: environment variables, other processes, signals, disks."""
