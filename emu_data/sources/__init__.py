"""Where a corpus comes from: img2dataset's shards, a folder of pictures, a table that names them, or package registries
(the demo). The first three at any fsspec address (addresses.py).

Each source leaves the same thing: a folder of shards as emu_data/shards.py reads them, with corpus.json that says which
source made it from what, and which files it wrote (standing.py). Pictures are not copied unless asked; rows are.
"""
