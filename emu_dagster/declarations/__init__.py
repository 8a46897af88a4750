"""What each asset reads and writes, declared once, and what follows from it: code versions, dvc.yaml, staleness."""
