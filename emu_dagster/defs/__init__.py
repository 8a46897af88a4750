"""The graph, one file a part of it. Somebody who reads this folder alone has read the product."""
