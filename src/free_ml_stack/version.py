"""The version of the library, also where it is used without its metadata."""

__version__ = "0.2.0"
