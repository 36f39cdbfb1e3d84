"""The science: data, model, train and predict are yours to edit; `stack` is the wiring."""
