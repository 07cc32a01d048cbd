"""The core language: recorded values, rules, compositions."""
