"""Networks and how they learn (Emu paper, sections 3.1, 3.2, 3.4 and 4)."""
