"""Where a corpus comes from: img2dataset's shards, a folder of pictures, a table that names pictures, or package
registries (the demo). The first three may be at any fsspec address (addresses.py).

Every source writes the same: a folder of shards as emu_data/shards.py reads them, with a corpus.json that says which
source made it from what, and which files it wrote (standing.py). Rows are copied; pictures only on request.
"""
