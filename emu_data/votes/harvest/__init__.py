"""Harvesting a queue: of many pictures few are worth keeping; people should see those early and know when to stop.

A linear probe on image embeddings learns from the votes so far and ranks the rest of the queue (probe.py, queue.py). A
declared share of what is shown follows a fixed order over all concepts instead: exploration. A control sample is drawn
uniformly before any vote (plan.py); people vote on it, and it never trains the probe. The certificate of recall
depends on it (stops.py). Near-twins are one item (groups.py). No file, no database, no clock and no random state.

This is technology-assisted review: Cormack and Grossman (SIGIR 2014); a greedy linear model with class weights is the
default of ASReview 3. The certificate is by Lewis, Yang and Frieder (CIKM 2021, arXiv 2108.12746).
"""
