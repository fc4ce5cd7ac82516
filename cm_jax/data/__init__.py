"""Data sets, batches and what is done to pixels: sources -> pipeline -> preprocess; prepare/ makes sets."""
