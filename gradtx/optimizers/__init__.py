"""The named methods, family by family: each a composition taken in at a glance."""
