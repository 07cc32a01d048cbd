"""Scalings of whole matrices: what a step does to one element depends on its row, its column, or all of it.

- `scale_by_factored_rms`: RMSProp's average of squares, kept as its row and column means alone (Adafactor).
"""
