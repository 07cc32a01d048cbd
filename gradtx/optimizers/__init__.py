"""The named methods, family by family. Each is a short composition of parts."""
