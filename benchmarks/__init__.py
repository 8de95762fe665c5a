"""Measurements behind the project's claims; not part of the installed package."""
