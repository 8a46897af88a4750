"""Properties of the packages, and the whole graph from outside. It is a package because some wheel contains another
`tests`."""
