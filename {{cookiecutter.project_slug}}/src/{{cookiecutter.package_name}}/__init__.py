"""Data, model and training of the project: config, data, model, train and predict."""
