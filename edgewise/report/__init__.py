"""Plots and tables from records."""
