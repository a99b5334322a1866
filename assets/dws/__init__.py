"""Tables of the layer dws."""
