"""What each asset reads and writes, declared once, and what is derived from it: code versions, dvc.yaml, staleness."""
