"""What a training takes before it is run: FLOPs, memory, days and dollars."""
