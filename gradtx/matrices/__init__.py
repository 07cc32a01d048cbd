"""Scalings of whole matrices: the update of an element depends on its row, its column, or the whole matrix.

- `scale_by_factored_rms`: RMSProp's average of squares, of which only row and column means are kept (Adafactor).
- `scale_by_confidence`: an average divided by the instability of what it averages, in factors as well (CAME).
- `low_rank`, `scale_by_low_rank`: another transform, run on a projected gradient (GaLore, APOLLO).
- `hyperball`, `pin_radius`: steps that turn a matrix and decide about its length.
"""
