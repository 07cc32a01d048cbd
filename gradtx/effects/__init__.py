"""Effects: transforms that act on updates, whatever method made them.

An effect does not choose a direction. It scales, limits, decays or perturbs updates that other transforms made:

- `scale_by_learning_rate(lr)` ends every named method: u = -lr g is gradient descent by itself.
- `add_decayed_weights(wd)` before it is AdamW's decay; before the direction it is L2 regularization.
- `scale_by_trust_ratio()` before it is what LAMB does to Adam and LARS to momentum.
- `clip_by_global_norm(1.0)` in front of everything keeps an exploding gradient from ruining the statistics.

The position of an effect in a composition is part of its meaning.
"""
