"""Training: what goes around an optimizer's update."""
