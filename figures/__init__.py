"""Figures from stored sweep results. No simulation happens here."""
