"""What is known of Neuron: instances, software stacks, models, memory. Pure data and arithmetic."""
