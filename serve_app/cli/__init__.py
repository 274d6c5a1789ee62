"""The command line: `neuron-serve`."""
