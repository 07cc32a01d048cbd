"""What needs more than a gradient: line searches, quasi-Newton methods, Newton's method, least squares."""
