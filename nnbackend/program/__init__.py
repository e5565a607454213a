"""Programs: models as tables over flat vectors, and the lowering of layers to them."""
