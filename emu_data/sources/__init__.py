"""Where a corpus comes from: img2dataset's shards, a folder of pictures, or package registries (the demo).

Each source writes or registers the same thing: shards as emu_data/shards.py reads them.
"""
