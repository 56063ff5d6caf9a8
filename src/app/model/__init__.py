"""The frozen 4-bit base with its adapter, and the LightningModule that trains it."""
