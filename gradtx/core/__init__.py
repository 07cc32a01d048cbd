"""The language: recorded values, rules, compositions."""
