"""How the networks learn: one loop that resumes exactly, and what it is made of."""
