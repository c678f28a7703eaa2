"""How much memory a run will need, counted on a model of fake tensors before anything is loaded."""
