"""Compiled once per instruction set; `_dispatch.py` chooses. See README.md."""
