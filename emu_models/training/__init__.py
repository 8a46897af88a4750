"""How the networks learn: one loop that resumes exactly, and its parts."""
