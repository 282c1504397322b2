"""Findings: falsifiable statements, one small module each."""
