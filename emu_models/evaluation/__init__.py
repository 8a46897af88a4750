"""How good the models are: reconstruction, faithfulness, preference, memorisation, and the prompts they are
asked.
"""
