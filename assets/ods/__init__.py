"""Tables of the layer ods."""
