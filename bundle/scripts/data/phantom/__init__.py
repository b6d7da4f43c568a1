"""Synthetic cases: anatomy painted on a grid and imaged by the signal equations of MR."""
