"""Fetching public data sets and unpacking their archives."""
