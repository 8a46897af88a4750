"""The graph, one file per part. To know what the product does, it is enough to read this folder."""
