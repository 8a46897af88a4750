"""Tests: properties of the packages, and the whole graph from outside. A package, since a wheel brings another `tests`."""
