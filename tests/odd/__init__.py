"""An unusual science: predicts two numbers from a text and a number, with ridge regression in NumPy."""
