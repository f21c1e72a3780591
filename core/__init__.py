"""Shared backbones, token mixers and methods of Glocal. Importing this package changes nothing in the process."""

__version__ = "0.1.0"
