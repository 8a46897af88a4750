"""What a training will take: FLOPs, memory, days and dollars."""
