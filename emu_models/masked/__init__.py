"""A transformer that fills in masked tokens of pictures (Muse, arXiv 2301.00704), and the tokenizer that makes them."""
