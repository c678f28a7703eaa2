"""Plan a run's memory on a model of fake tensors, before anything is loaded."""
