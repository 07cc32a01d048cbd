"""Methods that need more than a gradient: the curvature of the loss, or its values along a line."""
