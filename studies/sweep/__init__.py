"""Grids of cells: strategies, populations and seeds, tuned, run and measured."""
