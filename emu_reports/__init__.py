"""Static reports: data/reports/NAME/{index.html, report.json, pictures}, and the index that combines them.

A report's page shows what its report.json holds and nothing else, so the index is made from these files alone. Pages
need no script and no server: they can be mailed, archived, or opened from disk in ten years.
"""
