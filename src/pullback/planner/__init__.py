"""The planner: in which sequence to eliminate the vertices of a graph, whatever its edges are."""
