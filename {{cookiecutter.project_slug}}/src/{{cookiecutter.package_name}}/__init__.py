"""The science: config, data, model, train and predict are yours to edit."""
