"""Where the entries of an older params.yaml are now; shown next to the error that they cause."""

# dotted name in version 0.1 as of 25 November 2026 -> where it is now
MOVED = {
    "alignment_model.pretrained": "filter_ledger.signals.alignment_weights",
    "alignment_model.judge_seed": "faithfulness_judge.seed",
    "filter_ledger.shards_per_group": "nothing: the ledger is brought up to date in one run, one shard at a time",
    "automatic_report.num_bootstrap": "nothing: no figure depended on it",
    "filtered_corpus.concepts": "filter_ledger.signals.concepts",
    "filtered_corpus.max_hash_distance": "filtered_corpus.min_twin_similarity, of the pictures' looks",
    "generalist_selection.num_raters": "generalist_votes.num_raters",
    "generalist_selection.seed": "generalist_votes.seed",
    "curated_set.num_raters": "specialist_votes.num_raters",
    "curated_set.seed": "specialist_votes.seed",
    "appeal_report.num_raters": "appeal_votes.num_raters",
    "appeal_report.repeat_share": "appeal_votes.repeat_share",
    "faithfulness_report.num_raters": "faithfulness_votes.num_raters",
    "registered_model.max_faithfulness_loss": "registered_model.faithfulness_margin, in points of wins minus losses",
} | {
    f"{training}.{name}": f"launch.trainings.{training}.{name}"
    for training in ("pretrained_low", "pretrained_mid", "pretrained_full", "quality_tuned")
    for name in ("micro_batch_size", "gradient_checkpointing", "sample_every")
}


def moved_to(name: str) -> str:
    """Return " (is now …)" for an entry of an older version, otherwise ""."""
    return f" (is now {MOVED[name]})" if name in MOVED else ""
