"""Scalings of whole matrices: the update of an element depends on its row, its column, or the whole matrix.

- `scale_by_factored_rms`: RMSProp's average of squares, of which only row and column means are kept (Adafactor).
"""
