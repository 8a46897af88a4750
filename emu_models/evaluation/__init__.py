"""How good the models are: reconstruction, faithfulness, memorisation, and the prompts that they are evaluated on."""
