"""Properties of the packages, and the whole graph from outside. A package: a wheel brings another `tests`."""
