"""Live pages where people choose pictures, caption them and compare models.

It knows no orchestrator: pictures come from a folder or a project's data, and what people decided is written to
data/votes/ROUND when a round closes.
"""
