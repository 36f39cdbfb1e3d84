"""A science that nobody expects: two numbers from a text and a number, by ridge regression in NumPy."""
